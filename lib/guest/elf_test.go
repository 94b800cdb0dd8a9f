// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testSection is one section of an ELF file made for a test.
type testSection struct {
	name string
	kind elf.SectionType
	link uint32 // index of another section, counted from 1
	data []byte
}

// makeELF returns a 64-bit little-endian x86 ELF file with the sections given, and after them its string table.
func makeELF(sections ...testSection) []byte {
	names := []byte{0}
	headers := []elf.Section64{{}}
	var body bytes.Buffer
	const start = 64
	for _, s := range append(sections, testSection{name: ".shstrtab", kind: elf.SHT_STRTAB}) {
		h := elf.Section64{Name: uint32(len(names)), Type: uint32(s.kind), Link: s.link, Off: uint64(start + body.Len()), Addralign: 1}
		names = append(append(names, s.name...), 0)
		if s.name == ".shstrtab" {
			s.data = names
		}
		h.Size = uint64(len(s.data))
		body.Write(s.data)
		headers = append(headers, h)
	}
	file := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: uint64(start + body.Len()), Ehsize: start, Shentsize: 64, Shnum: uint16(len(headers)), Shstrndx: uint16(len(headers) - 1),
	}
	var out bytes.Buffer
	// Writes to a Buffer of fixed-size structures cannot fail.
	_ = binary.Write(&out, binary.LittleEndian, file)
	out.Write(body.Bytes())
	_ = binary.Write(&out, binary.LittleEndian, headers)
	return out.Bytes()
}

// dynamicELF returns a file with a dynamic section that needs the libraries and, unless "", has the RUNPATH.
func dynamicELF(runpath string, needed ...string) []byte {
	strings := []byte{0}
	var dynamic bytes.Buffer
	entry := func(tag elf.DynTag, s string) {
		_ = binary.Write(&dynamic, binary.LittleEndian, elf.Dyn64{Tag: int64(tag), Val: uint64(len(strings))})
		strings = append(append(strings, s...), 0)
	}
	for _, n := range needed {
		entry(elf.DT_NEEDED, n)
	}
	if runpath != "" {
		entry(elf.DT_RUNPATH, runpath)
	}
	_ = binary.Write(&dynamic, binary.LittleEndian, elf.Dyn64{})
	return makeELF(testSection{name: ".dynstr", kind: elf.SHT_STRTAB, data: strings},
		testSection{name: ".dynamic", kind: elf.SHT_DYNAMIC, link: 1, data: dynamic.Bytes()})
}

// writeTree writes files below a new directory and returns it.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSharedLibraries(t *testing.T) {
	leaf := string(dynamicELF("")) // needs nothing
	root := writeTree(t, map[string]string{
		"usr/bin/prog":                string(dynamicELF("/usr/lib/special", "liba.so.1", "libs.so")),
		"usr/bin/broken":              string(dynamicELF("", "libmissing.so")),
		"usr/bin/script":              "#!/bin/sh\n",
		libDir + "/liba.so.1":         string(dynamicELF("$ORIGIN/deep", "libb.so", "libs.so")),
		libDir + "/deep/libb.so":      leaf,
		"usr/lib/special/libs.so":     leaf,
		libDir + "/libs.so":           "the wrong one: RUNPATH comes first",
		"usr/lib64/" + loaderName:     leaf,
		"usr/lib64/not-a-library.txt": "",
	})
	want := map[string]string{
		"liba.so.1": root + "/" + libDir + "/liba.so.1",
		"libb.so":   root + "/" + libDir + "/deep/libb.so",
		"libs.so":   root + "/usr/lib/special/libs.so",
		loaderName:  root + "/usr/lib64/" + loaderName,
	}
	got, err := sharedLibraries(root, filepath.Join(root, "usr/bin/prog"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("libraries of prog (-want +got):\n%s", diff)
	}
	if got, err := sharedLibraries(root, filepath.Join(root, "usr/bin/script")); err != nil || len(got) != 0 {
		t.Errorf("libraries of a script: got %v, %v, want none", got, err)
	}
	if _, err := sharedLibraries(root, filepath.Join(root, "usr/bin/broken")); err == nil {
		t.Error("a library in no directory: got no error")
	}
}

func TestProgramScript(t *testing.T) {
	dir := writeTree(t, map[string]string{"it's a prog": "#!/bin/sh\nprintf '%s|' \"$VALUE\" \"$@\"\n"})
	p, err := newProgram(filepath.Join(dir, "it's a prog"), "/nowhere", "-L", "a b")
	if err != nil {
		t.Fatal(err)
	}
	p.env = []string{"VALUE=$HOME 'x'"}
	script := filepath.Join(dir, "wrapper")
	if err := os.WriteFile(script, []byte(p.script()), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command(script, "user's", "", "$(x)").Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "$HOME 'x'|-L|a b|user's||$(x)|"; string(got) != want {
		t.Errorf("wrapper: got %s, want %s", got, want)
	}
}

func TestNewProgramDynamic(t *testing.T) {
	dir := writeTree(t, map[string]string{"prog": string(dynamicELF("", "libc.so.6"))})
	got, err := newProgram(dir+"/prog", "/libs", "-L", "/data")
	if err != nil {
		t.Fatal(err)
	}
	want := program{path: "/libs/" + loaderName, args: []string{"--library-path", "/libs", dir + "/prog", "-L", "/data"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(program{})); diff != "" {
		t.Errorf("program (-want +got):\n%s", diff)
	}
}
