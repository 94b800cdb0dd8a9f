// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// makeBzImage returns a bzImage with two setup sectors and the payload at offset 32 of the protected-mode code.
func makeBzImage(payload string) []byte {
	const start = 3 * 512
	image := make([]byte, start+32, start+32+len(payload))
	image[bzSetupSects] = 2
	binary.LittleEndian.PutUint16(image[bzBootFlag:], 0xaa55)
	copy(image[bzMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[bzVersion:], 0x020f)
	binary.LittleEndian.PutUint32(image[bzPayloadOffset:], 32)
	binary.LittleEndian.PutUint32(image[bzPayloadLength:], uint32(len(payload)))
	return append(image, payload...)
}

func TestBzImagePayload(t *testing.T) {
	for _, c := range []struct {
		payload, data, suffix string
		size                  int64
	}{
		{"\x28\xb5\x2f\xfdzstd\x00\x01\x00\x00", "\x28\xb5\x2f\xfdzstd", ".zst", 256},
		{"\xfd7zXZ\x00xz\x05\x00\x00\x00", "\xfd7zXZ\x00xz", ".xz", 5},
		{"\x02\x21\x4c\x18lz4\x07\x00\x00\x00", "\x02\x21\x4c\x18lz4", ".lz4", 7},
		{"\x1f\x8bgzip-data", "\x1f\x8bgzip-data", ".gz", -1},
	} {
		got, err := bzImagePayload(makeBzImage(c.payload))
		if err != nil {
			t.Errorf("%s: %v", c.suffix, err)
			continue
		}
		if string(got.data) != c.data || got.suffix != c.suffix || got.size != c.size {
			t.Errorf("%s: got %q, %s, %d, want %q, %d", c.suffix, got.data, got.suffix, got.size, c.data, c.size)
		}
	}
}

func TestBzImagePayloadErrors(t *testing.T) {
	change := func(f func(image []byte) []byte) []byte { return f(makeBzImage("\x28\xb5\x2f\xfd12345678")) }
	for name, image := range map[string][]byte{
		"empty":          nil,
		"no boot flag":   change(func(b []byte) []byte { b[bzBootFlag] = 0; return b }),
		"no magic":       change(func(b []byte) []byte { b[bzMagic] = 'X'; return b }),
		"old protocol":   change(func(b []byte) []byte { b[bzVersion] = 7; return b }),
		"cut off":        change(func(b []byte) []byte { return b[:len(b)-1] }),
		"far offset":     change(func(b []byte) []byte { copy(b[bzPayloadOffset:], "\xff\xff\xff\xff"); return b }),
		"huge length":    change(func(b []byte) []byte { copy(b[bzPayloadLength:], "\xff\xff\xff\xff"); return b }),
		"no length":      change(func(b []byte) []byte { copy(b[bzPayloadLength:], "\x00\x00\x00\x00"); return b }),
		"unknown format": makeBzImage("what is it?"),
	} {
		if p, err := bzImagePayload(image); err == nil {
			t.Errorf("%s: got %+v and no error", name, p)
		}
	}
}

func FuzzBzImagePayload(f *testing.F) {
	f.Add(makeBzImage("\x28\xb5\x2f\xfd12345678"))
	f.Add(makeBzImage("\x1f\x8b12345678"))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, image []byte) {
		if p, err := bzImagePayload(image); err == nil && !bytes.Contains(image, p.data) {
			t.Errorf("payload %q is not part of the image", p.data)
		}
	})
}

// makeModule returns a kernel module with the .modinfo entries.
func makeModule(info ...string) string {
	return string(makeELF(testSection{name: ".modinfo", kind: elf.SHT_PROGBITS, data: []byte(strings.Join(info, "\x00") + "\x00")}))
}

func TestParseModule(t *testing.T) {
	got, err := parseModule("nvme_tcp", []byte(makeModule("alias=nvme-transport-1", "license=GPL", "depends=nvme-fabrics,nvme-core,",
		"softdep=pre: crc32c  xor post: later", "alias=two", "depends=")))
	if err != nil {
		t.Fatal(err)
	}
	want := module{name: "nvme_tcp", depends: []string{"nvme_fabrics", "nvme_core"}, pre: []string{"crc32c", "xor"},
		aliases: []string{"nvme-transport-1", "two"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(module{})); diff != "" {
		t.Errorf("module (-want +got):\n%s", diff)
	}
	for name, object := range map[string]string{"no ELF file": "text", "no section": string(makeELF())} {
		if _, err := parseModule("x", []byte(object)); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestModuleSet(t *testing.T) {
	dir := writeTree(t, map[string]string{
		"modules.builtin":                 "kernel/drivers/nvme/host/nvme-core.ko\n",
		"kernel/fs/xfs/xfs.ko":            makeModule("depends=libcrc32c,nvme-core", "alias=fs-xfs", "softdep=pre: absent present"),
		"kernel/lib/libcrc32c.ko":         makeModule("depends=crc-base"),
		"kernel/lib/crc-base.ko":          makeModule("depends="),
		"kernel/lib/present.ko":           makeModule("depends="),
		"kernel/lib/unwanted.ko":          "not even a module",
		"kernel/lib/broken/needs-more.ko": makeModule("depends=missing"),
	})
	s, err := readModuleTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"xfs", "nvme-core", "xfs"} {
		if err := s.add(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "lib/modules/6.1")
	if err := s.write(out); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"modules.dep":   "crc_base.ko:\nlibcrc32c.ko: crc_base.ko\npresent.ko:\nxfs.ko: libcrc32c.ko crc_base.ko\n",
		"modules.alias": "alias fs-xfs xfs\n",
	} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	files, err := filepath.Glob(filepath.Join(out, "*.ko"))
	if err != nil || len(files) != 4 {
		t.Errorf("modules written: got %v, %v, want 4", files, err)
	}
	for _, name := range []string{"nowhere", "needs_more", "unwanted"} {
		if err := s.add(t.Context(), name); err == nil {
			t.Errorf("module %s: got no error", name)
		}
	}
}
