// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var sourceFields = cmp.AllowUnexported(aptSource{})

func TestParseOneLineSources(t *testing.T) {
	got, err := parseOneLineSources(`# comment
deb http://mirror.example/debian bookworm main contrib # more words
deb-src	http://mirror.example/debian	bookworm main

deb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] https://other.example/x ./
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []aptSource{
		{types: []string{"deb"}, uris: []string{"http://mirror.example/debian"}, suites: []string{"bookworm"}, components: []string{"main", "contrib"}},
		{types: []string{"deb-src"}, uris: []string{"http://mirror.example/debian"}, suites: []string{"bookworm"}, components: []string{"main"}},
		{types: []string{"deb"}, uris: []string{"https://other.example/x"}, suites: []string{"./"}, components: []string{}, signedBy: "/k/a.gpg /k/b.gpg"},
	}
	if diff := cmp.Diff(want, got, sourceFields); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"deb", "deb http://x.example", "deb [arch=amd64 http://x.example y main"} {
		if _, err := parseOneLineSources(bad); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

func TestParseDeb822Sources(t *testing.T) {
	got, err := parseDeb822Sources(`Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian/
Suites: trixie trixie-updates
Components: main
 contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 key
 -----END PGP PUBLIC KEY BLOCK-----


Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
`)
	if err != nil {
		t.Fatal(err)
	}
	key := "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n key\n -----END PGP PUBLIC KEY BLOCK-----"
	want := []aptSource{{
		types: []string{"deb", "deb-src"}, uris: []string{"http://mirror.example/debian/"}, suites: []string{"trixie", "trixie-updates"},
		components: []string{"main", "contrib"}, signedBy: key,
	}}
	if diff := cmp.Diff(want, got, sourceFields); diff != "" {
		t.Fatalf("sources (-want +got):\n%s", diff)
	}
	again, err := parseDeb822Sources(got[0].stanza([]string{"forky"}, got[0].signedBy))
	if err != nil {
		t.Fatal(err)
	}
	want[0].types, want[0].suites, want[0].components = []string{"deb"}, []string{"forky"}, []string{"main"}
	if diff := cmp.Diff(want, again, sourceFields); diff != "" {
		t.Errorf("stanza read back (-want +got):\n%s", diff)
	}
	for _, bad := range []string{" continues nothing", "no colon"} {
		if _, err := parseDeb822Sources(bad); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

func TestReadSources(t *testing.T) {
	dir := writeTree(t, map[string]string{
		"parts/a.list":          "deb http://a.example/debian sid main",
		"parts/b.sources":       "Types: deb\nURIs: http://b.example/debian\nSuites: sid\nComponents: main\n",
		"parts/c.list.disabled": "nonsense",
	})
	sources, err := readSources(dir+"/missing", dir+"/parts")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sources {
		got = append(got, s.uris...)
	}
	if diff := cmp.Diff([]string{"http://a.example/debian", "http://b.example/debian"}, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	bad := writeTree(t, map[string]string{"bad.list": "deb"})
	if _, err := readSources(bad+"/bad.list", bad+"/none"); err == nil || !strings.Contains(err.Error(), "bad.list: line 1") {
		t.Errorf("a bad list: got error %v, want one naming file and line", err)
	}
}

func TestDebianSource(t *testing.T) {
	deb := func(uri, signedBy, component string, suites ...string) aptSource {
		return aptSource{types: []string{"deb"}, uris: []string{uri}, suites: suites, components: []string{component}, signedBy: signedBy}
	}
	vendor := deb("https://vendor.example/debian/12/prod", "/k/vendor.gpg", "main", "bookworm")
	security := deb("http://m.example/debian-security", "/usr/share/keyrings/debian-archive-keyring.gpg", "main", "bookworm-security")
	archive := deb("http://m.example/debian", "", "main", "bookworm", "bookworm-updates")
	list := deb("mirror+file:///etc/apt/mirrors/debian.list", "/usr/share/keyrings/debian-archive-keyring.gpg", "main", "bookworm")
	docker := deb("https://vendor.example/linux/debian", "", "stable", "bookworm")
	foreign := deb("http://m.example/ubuntu", "", "main", "noble")
	for _, c := range []struct {
		name    string
		sources []aptSource
		want    string // address; "" is an error
	}{
		{"archive after a vendor's", []aptSource{vendor, docker, security, archive}, archive.uris[0]},
		{"mirror list", []aptSource{vendor, list}, list.uris[0]},
		{"source packages only", []aptSource{{types: []string{"deb-src"}, uris: archive.uris, suites: archive.suites, components: []string{"main"}}}, ""},
		{"security only", []aptSource{security}, ""},
		{"another distribution", []aptSource{foreign}, ""},
		{"none", nil, ""},
	} {
		got, err := debianSource(c.sources)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: got %v, want an error", c.name, got.uris)
			}
			continue
		}
		if err != nil || got.uris[0] != c.want {
			t.Errorf("%s: got %v, %v, want %s", c.name, got.uris, err, c.want)
		}
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b signed-by=/x] http://m.example/debian sid main\n")
	f.Add("Types: deb\nURIs: http://m.example\nSuites: sid\nSigned-By:\n -----\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(string) ([]aptSource, error){parseOneLineSources, parseDeb822Sources} {
			if sources, err := parse(text); err == nil {
				if s, err := debianSource(sources); err == nil && len(s.uris) == 0 {
					t.Errorf("%q: a source without an address", text)
				}
			}
		}
	})
}
