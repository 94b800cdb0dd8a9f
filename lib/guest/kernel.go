// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Offsets of the setup header in a bzImage (Linux, Documentation/arch/x86/boot.rst).
const (
	bzSetupSects    = 0x1f1 // u8, 512-byte sectors of setup code after the boot sector; 0 means 4
	bzBootFlag      = 0x1fe // u16, 0xaa55
	bzMagic         = 0x202 // "HdrS"
	bzVersion       = 0x206 // u16, boot protocol version
	bzPayloadOffset = 0x248 // u32, from the start of the protected-mode code; protocol 2.08
	bzPayloadLength = 0x24c // u32
	bzHeaderEnd     = 0x250
)

// payload is the compressed ELF kernel inside a bzImage.
type payload struct {
	data   []byte
	suffix string // file name ending of the compression
	size   int64  // bytes when decompressed; -1 when the image does not say
}

// bzImagePayload finds the compressed kernel in a bzImage. The kernel's build appends the decompressed size (u32) to every format but
// gzip, which has it itself.
func bzImagePayload(image []byte) (payload, error) {
	if len(image) < bzHeaderEnd || binary.LittleEndian.Uint16(image[bzBootFlag:]) != 0xaa55 || string(image[bzMagic:bzMagic+4]) != "HdrS" {
		return payload{}, errors.New("not a bzImage: no setup header")
	}
	if v := binary.LittleEndian.Uint16(image[bzVersion:]); v < 0x0208 {
		return payload{}, fmt.Errorf("bzImage of boot protocol %d.%02d: the payload's place is known from 2.08 on", v>>8, v&0xff)
	}
	sectors := uint64(image[bzSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[bzPayloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(image[bzPayloadLength:]))
	if end := start + length; end > uint64(len(image)) || length < 8 {
		return payload{}, fmt.Errorf("bzImage payload at %d, %d bytes, in an image of %d bytes", start, length, len(image))
	}
	data := image[start : start+length]
	for _, format := range []struct{ magic, suffix string }{
		{"\x28\xb5\x2f\xfd", ".zst"}, {"\xfd7zXZ\x00", ".xz"}, {"\x02\x21\x4c\x18", ".lz4"}, {"\x1f\x8b", ".gz"},
	} {
		if !bytes.HasPrefix(data, []byte(format.magic)) {
			continue
		}
		if format.suffix == ".gz" {
			return payload{data: data, suffix: format.suffix, size: -1}, nil
		}
		tail := len(data) - 4
		return payload{data: data[:tail], suffix: format.suffix, size: int64(binary.LittleEndian.Uint32(data[tail:]))}, nil
	}
	return payload{}, fmt.Errorf("bzImage payload of an unknown compression, it starts with % x", data[:8])
}

// extractKernel writes the ELF kernel inside the bzImage at path to out. QEMU boots it by the PVH entry, in half the time under TCG: the
// guest need not decompress it.
func extractKernel(ctx context.Context, path, out string) error {
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	p, err := bzImagePayload(image)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	packed := out + p.suffix
	if err := os.WriteFile(packed, p.data, 0o644); err != nil {
		return err
	}
	kernel, err := decompress(ctx, packed)
	if err = errors.Join(err, os.Remove(packed)); err != nil {
		return err
	}
	if p.size >= 0 && int64(len(kernel)) != p.size {
		return fmt.Errorf("%s: the kernel in it has %d bytes, the image says %d", path, len(kernel), p.size)
	}
	if _, err := elf.NewFile(bytes.NewReader(kernel)); err != nil {
		return fmt.Errorf("%s: the kernel in it: %w", path, err)
	}
	return os.WriteFile(out, kernel, 0o644)
}

// module is what a kernel module's .modinfo section says about its dependencies.
type module struct {
	name    string
	depends []string // must be loaded before
	pre     []string // "softdep: pre": loaded before if present, such as checksum algorithms asked for by name
	aliases []string
}

// moduleName makes file names and names in .modinfo comparable: the kernel takes '-' and '_' for the same.
func moduleName(name string) string {
	name, _, _ = strings.Cut(filepath.Base(name), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// parseModule reads the .modinfo section of a decompressed module: NUL-terminated "key=value" strings.
func parseModule(name string, object []byte) (module, error) {
	m := module{name: name}
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return m, fmt.Errorf("module %s: %w", name, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return m, fmt.Errorf("module %s: no .modinfo section", name)
	}
	info, err := section.Data()
	if err != nil {
		return m, fmt.Errorf("module %s: %w", name, err)
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					m.depends = append(m.depends, moduleName(d))
				}
			}
		case "softdep":
			m.pre = append(m.pre, softPre(value)...)
		case "alias":
			m.aliases = append(m.aliases, value)
		}
	}
	return m, nil
}

// softPre returns the names after "pre:" in a soft dependency "pre: a b post: c".
func softPre(value string) []string {
	var names []string
	pre := false
	for _, word := range strings.Fields(value) {
		switch {
		case strings.HasSuffix(word, ":"):
			pre = word == "pre:"
		case pre:
			names = append(names, moduleName(word))
		}
	}
	return names
}

// moduleSet collects modules with their dependencies out of an unpacked kernel.
type moduleSet struct {
	files   map[string]string // name to compressed file
	builtin map[string]bool
	objects map[string][]byte
	modules map[string]module
	order   []string // dependencies first
}

// readModuleTree lists the modules below dir, a /lib/modules/RELEASE.
func readModuleTree(dir string) (*moduleSet, error) {
	s := &moduleSet{files: map[string]string{}, builtin: map[string]bool{}, objects: map[string][]byte{}, modules: map[string]module{}}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("reading a kernel's modules: %w", err)
	}
	for _, line := range strings.Fields(string(builtin)) {
		s.builtin[moduleName(line)] = true
	}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			s.files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading a kernel's modules: %w", err)
	}
	return s, nil
}

// add decompresses a module and what it depends on. A module that is built into the kernel needs nothing.
func (s *moduleSet) add(ctx context.Context, name string) error {
	name = moduleName(name)
	if s.builtin[name] || s.objects[name] != nil {
		return nil
	}
	path, ok := s.files[name]
	if !ok {
		return fmt.Errorf("the kernel has no module %s, nor is it built in", name)
	}
	var object []byte
	var err error
	if strings.HasSuffix(path, ".ko") {
		object, err = os.ReadFile(path)
	} else {
		object, err = decompress(ctx, path)
	}
	if err != nil {
		return err
	}
	m, err := parseModule(name, object)
	if err != nil {
		return err
	}
	s.objects[name], s.modules[name] = object, m
	for _, d := range m.depends {
		if err := s.add(ctx, d); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	for _, d := range m.pre {
		if _, ok := s.files[d]; ok {
			if err := s.add(ctx, d); err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
		}
	}
	s.order = append(s.order, name)
	return nil
}

// write puts the modules into dir with the indexes modprobe reads: modules.dep and modules.alias (modules.dep(5)).
func (s *moduleSet) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var dep, alias strings.Builder
	for _, name := range s.order {
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), s.objects[name], 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&dep, "%s.ko:", name)
		for _, d := range s.closure(name) {
			fmt.Fprintf(&dep, " %s.ko", d)
		}
		dep.WriteByte('\n')
		for _, a := range s.modules[name].aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, name)
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "modules.alias"), []byte(alias.String()), 0o644))
}

// closure lists what must be loaded before the module, in the order of modules.dep: the last one is loaded first.
func (s *moduleSet) closure(name string) []string {
	needed := map[string]bool{}
	var visit func(string)
	visit = func(n string) {
		for _, d := range s.modules[n].depends {
			if _, ok := s.modules[d]; ok && !needed[d] {
				needed[d] = true
				visit(d)
			}
		}
	}
	visit(name)
	var list []string
	for _, n := range slices.Backward(s.order) {
		if needed[n] {
			list = append(list, n)
		}
	}
	return list
}
