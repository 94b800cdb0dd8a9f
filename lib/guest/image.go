// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// rootfs holds the programs of ours in every guest: init, notify, await.
//
//go:embed rootfs
var rootfs embed.FS

// hostDir is where a guest keeps programs copied from the host together with the host's libraries, apart from its own.
const hostDir = "host"

// File is a file to be put into a guest: Data, or else the content of the host's file Host. A program of the host that needs shared
// libraries brings them along and runs with them, whatever libraries the guest has.
type File struct {
	Host string
	Data []byte
	// Mode are the permissions; 0 takes those of Host, and 0644 for Data.
	Mode fs.FileMode
}

// imageWriter writes a guest's root file system. A path is written once: what comes first wins.
type imageWriter struct {
	cpio *cpioWriter
	seen map[string]bool
	// hostLibs maps names of the host's libraries that are in the image to the files they came from.
	hostLibs map[string]string
}

// writeImage writes the initial RAM file system of a guest to out: the caller's files, our own programs
// and the job, then the trees of bundles.
func writeImage(out io.Writer, job string, files map[string]File, trees ...string) error {
	w := &imageWriter{cpio: newCpioWriter(out), seen: map[string]bool{}, hostLibs: map[string]string{}}
	for _, step := range []func() error{
		func() error { return w.files(files) },
		func() error { return w.base(job) },
		func() error { return w.trees(trees) },
		w.cpio.close,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("making the guest's root file system: %w", err)
		}
	}
	return nil
}

// base writes what every guest has and no package brings.
func (w *imageWriter) base(job string) error {
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt", "root"} {
		if err := w.add(cpioEntry{name: dir, mode: cpioDir | 0o755}); err != nil {
			return err
		}
	}
	if err := w.add(cpioEntry{name: "tmp", mode: cpioDir | 0o1777}); err != nil {
		return err
	}
	// The kernel opens the console for init before devtmpfs is mounted.
	if err := w.add(cpioEntry{name: "dev/console", mode: cpioDevice | 0o600, major: 5, minor: 1}); err != nil {
		return err
	}
	for _, f := range []struct{ from, to string }{{"init", "init"}, {"notify", "usr/bin/notify"}, {"await", "usr/bin/await"}} {
		data, err := rootfs.ReadFile("rootfs/" + f.from)
		if err != nil {
			return err
		}
		if err := w.data(f.to, data, 0o755); err != nil {
			return err
		}
	}
	for _, f := range []struct{ name, text string }{
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"}, {"etc/group", "root:x:0:\n"}, {"etc/hosts", "127.0.0.1 localhost\n"},
	} {
		if err := w.data(f.name, []byte(f.text), 0o644); err != nil {
			return err
		}
	}
	return w.data("job", []byte(job), 0o755)
}

// files writes the caller's files.
func (w *imageWriter) files(files map[string]File) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		clean := strings.TrimPrefix(path.Clean("/"+name), "/")
		if clean == "" || (f.Host == "") == (f.Data == nil) {
			return fmt.Errorf("file %q: want a path in the guest, and either Host or Data", name)
		}
		var err error
		if f.Host != "" {
			err = w.hostFile(clean, f)
		} else {
			err = w.data(clean, f.Data, orMode(f.Mode, 0o644))
		}
		if err != nil {
			return fmt.Errorf("file %s: %w", name, err)
		}
	}
	return nil
}

// hostFile writes a file of the host. A dynamically linked program goes to hostDir with its libraries, and a script takes its place.
func (w *imageWriter) hostFile(name string, f File) error {
	info, err := os.Stat(f.Host)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", f.Host)
	}
	mode := orMode(f.Mode, info.Mode().Perm())
	dynamic, err := isDynamic(f.Host)
	if err != nil {
		return err
	}
	if !dynamic {
		return w.copy(name, f.Host, mode)
	}
	libs, err := sharedLibraries("/", f.Host)
	if err != nil {
		return err
	}
	for _, lib := range slices.Sorted(maps.Keys(libs)) {
		if have, ok := w.hostLibs[lib]; ok {
			if have != libs[lib] {
				return fmt.Errorf("needs %s, another program came with %s", libs[lib], have)
			}
			continue
		}
		w.hostLibs[lib] = libs[lib]
		if err := w.copy(path.Join(hostDir, "lib", lib), libs[lib], 0o755); err != nil {
			return err
		}
	}
	real := path.Join(hostDir, name)
	if err := w.copy(real, f.Host, mode); err != nil {
		return err
	}
	libPath := "/" + path.Join(hostDir, "lib")
	p := program{path: libPath + "/" + loaderName, args: []string{"--library-path", libPath, "/" + real}}
	return w.data(name, []byte(p.script()), mode)
}

// trees writes everything below the directories, in the order given.
func (w *imageWriter) trees(trees []string) error {
	for _, tree := range trees {
		err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == tree {
				return err
			}
			rel, err := filepath.Rel(tree, p)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			switch {
			case w.seen[rel]:
				return nil
			case d.IsDir():
				return w.add(cpioEntry{name: rel, mode: cpioDir | uint32(info.Mode().Perm())})
			case d.Type() == fs.ModeSymlink:
				target, err := os.Readlink(p)
				if err != nil {
					return err
				}
				return w.add(cpioEntry{name: rel, mode: cpioLink | 0o777, size: int64(len(target)), body: strings.NewReader(target)})
			case d.Type().IsRegular():
				return w.copy(rel, p, info.Mode().Perm())
			}
			return fmt.Errorf("%s: neither file, directory nor link", p)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// add writes an entry after the directories above it. Paths below /bin, /sbin, /lib and /lib64 move to /usr, of which those are links in
// the guest.
func (w *imageWriter) add(e cpioEntry) error {
	first, rest, ok := strings.Cut(e.name, "/")
	if ok && slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, first) {
		e.name = path.Join("usr", first, rest)
	}
	if w.seen[e.name] {
		return nil
	}
	if dir := path.Dir(e.name); dir != "." && !w.seen[dir] {
		if err := w.add(cpioEntry{name: dir, mode: cpioDir | 0o755}); err != nil {
			return err
		}
	}
	w.seen[e.name] = true
	return w.cpio.add(e)
}

// data writes a file of the given content.
func (w *imageWriter) data(name string, data []byte, mode fs.FileMode) error {
	return w.add(cpioEntry{name: name, mode: cpioFile | uint32(mode.Perm()), size: int64(len(data)), body: bytes.NewReader(data)})
}

// copy writes a file with the content of one of the host's.
func (w *imageWriter) copy(name, from string, mode fs.FileMode) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return w.add(cpioEntry{name: name, mode: cpioFile | uint32(mode.Perm()), size: info.Size(), body: f})
}

// orMode returns mode, or fallback when it is 0.
func orMode(mode, fallback fs.FileMode) fs.FileMode {
	if mode == 0 {
		return fallback
	}
	return mode
}
