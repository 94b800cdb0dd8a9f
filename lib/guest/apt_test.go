// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePrintURIs(t *testing.T) {
	got, err := parsePrintURIs("Reading package lists...\n" +
		"'http://m.example/pool/main/q/qemu/qemu_11.1.3_amd64.deb' qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb 10377056 SHA256:ab12\n" +
		"'http://m.example/pool/z.deb' zlib1g_1.3_amd64.deb 7 SHA256:cd \n")
	if err != nil {
		t.Fatal(err)
	}
	want := []debPackage{
		{name: "qemu-system-x86", version: "1:11.1.3+ds-1~bpo13+1", file: "qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb", size: 10377056, sha256: "ab12"},
		{name: "zlib1g", version: "1.3", file: "zlib1g_1.3_amd64.deb", size: 7, sha256: "cd"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(debPackage{})); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
	for _, bad := range []string{
		"'http://m.example/x.deb'",
		"'http://m.example/x.deb' x_1_amd64.deb many SHA256:ab",
		"'http://m.example/x.deb' x_1_amd64.deb 5 MD5Sum:ab",
		"'http://m.example/x.deb' x.deb 5 SHA256:ab",
		"'http://m.example/x.deb' ../x_1_amd64.deb 5 SHA256:ab",
	} {
		if _, err := parsePrintURIs(bad); err == nil {
			t.Errorf("%s: got no error", bad)
		}
	}
}

func TestVerify(t *testing.T) {
	path := filepath.Join(writeTree(t, map[string]string{"x.deb": "abc"}), "x.deb")
	p := debPackage{file: "x.deb", sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
	if err := p.verify(path); err != nil {
		t.Errorf("the right file: got %v", err)
	}
	if err := os.WriteFile(path, []byte("abd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.verify(path); err == nil {
		t.Error("a changed file: got no error")
	}
}

func TestRunErrors(t *testing.T) {
	out, err := run(t.Context(), "", nil, "sh", "-c", "echo data; echo words >&2")
	if err != nil || out != "data\n" {
		t.Errorf("got %q, %v, want the standard output alone", out, err)
	}
	_, err = run(t.Context(), "", nil, "sh", "-c", "echo noise; echo 'E: no such thing' >&2; exit 100")
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 100: E: no such thing") {
		t.Errorf("got %v, want the status and the complaint", err)
	}
	if _, err = run(t.Context(), "", nil, "no-such-program-at-all"); err == nil || !strings.Contains(err.Error(), "is needed and not installed") {
		t.Errorf("a missing program: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = run(ctx, "", nil, "sleep", "60"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestIsSignatureError(t *testing.T) {
	for text, want := range map[string]bool{
		"E: The repository is not signed.": true,
		"W: GPG error: The following signatures couldn't be verified: NO_PUBKEY 6ED0E7B82643E131": true,
		"E: Failed to fetch: Temporary failure resolving":                                         false,
	} {
		if got := isSignatureError(errors.New(text)); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}
