// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// libDir is where all shared libraries of a bundle and of a guest are, in one directory: the first place the dynamic loader looks.
const libDir = "usr/lib/x86_64-linux-gnu"

// loaderName is the dynamic loader of x86-64, named by the program itself (PT_INTERP) in /lib64.
const loaderName = "ld-linux-x86-64.so.2"

// libraryPath are the directories below a root in which libraries are searched after a program's own RUNPATH.
var libraryPath = []string{libDir, "lib/x86_64-linux-gnu", "usr/lib64", "lib64", "usr/lib", "lib"}

// isDynamic reports whether the file is an ELF program or library that needs the dynamic loader or other libraries.
func isDynamic(path string) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	var magic [len(elf.ELFMAG)]byte
	if n, err := file.ReadAt(magic[:], 0); string(magic[:n]) != elf.ELFMAG {
		if err != nil && err != io.EOF {
			return false, err
		}
		return false, nil // a script, or data
	}
	f, err := elf.NewFile(file)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	libs, err := f.ImportedLibraries()
	return len(libs) > 0, err
}

// sharedLibraries returns the libraries the program at path needs, transitively, with the dynamic loader: library name to file.
// They are searched below root, in the order of the dynamic loader: the file's own RUNPATH, then the usual directories.
func sharedLibraries(root, path string) (map[string]string, error) {
	found := map[string]string{}
	if dynamic, err := isDynamic(path); err != nil || !dynamic {
		return found, err
	}
	loader, err := findLibrary(root, loaderName, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	found[loaderName] = loader
	// Breadth first, as the loader does: the same name may be in two places, and what the program itself finds counts.
	for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
		more, err := addNeeded(root, queue[0], found)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", queue[0], err)
		}
		queue = append(queue, more...)
	}
	return found, nil
}

// addNeeded adds to found the libraries the file at path itself needs, and returns the files that are new.
func addNeeded(root, path string, found map[string]string) (added []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("reading its dynamic section: %w", err)
	}
	runpath, err := runpath(f, path)
	if err != nil {
		return nil, fmt.Errorf("reading its dynamic section: %w", err)
	}
	for _, name := range needed {
		if _, ok := found[name]; ok {
			continue
		}
		library, err := findLibrary(root, name, runpath)
		if err != nil {
			return nil, err
		}
		found[name] = library
		added = append(added, library)
	}
	return added, nil
}

// runpath returns the directories of RUNPATH and RPATH; $ORIGIN is the directory of the file itself.
func runpath(f *elf.File, path string) ([]string, error) {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, err := f.DynString(tag)
		if err != nil {
			return nil, err
		}
		for _, value := range values {
			for dir := range strings.SplitSeq(value, ":") {
				dir = strings.ReplaceAll(dir, "${ORIGIN}", "$ORIGIN")
				dirs = append(dirs, strings.ReplaceAll(dir, "$ORIGIN", filepath.Dir(path)))
			}
		}
	}
	return dirs, nil
}

// findLibrary returns the file of a library below root. Absolute directories of a RUNPATH are meant below root too, except those that are
// there already ($ORIGIN).
func findLibrary(root, name string, runpath []string) (string, error) {
	var dirs []string
	for _, dir := range runpath {
		if !strings.HasPrefix(dir, root) {
			dir = filepath.Join(root, dir)
		}
		dirs = append(dirs, dir)
	}
	for _, dir := range libraryPath {
		dirs = append(dirs, filepath.Join(root, dir))
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("needs %s, which is not below %s: %w", name, root, fs.ErrNotExist)
}

// program is how an unpacked program is started on this machine: through its own dynamic loader, with its own libraries, so that neither
// has to match the machine's. Paths of files and sockets keep their meaning, unlike with chroot.
type program struct {
	path string   // the loader, or the program itself when it is static
	args []string // put before the user's
	env  []string // "NAME=value", added to the user's
}

// newProgram returns the program at path whose libraries are in libs.
func newProgram(path, libs string, args ...string) (program, error) {
	dynamic, err := isDynamic(path)
	if err != nil {
		return program{}, err
	}
	if !dynamic {
		return program{path: path, args: args}, nil
	}
	return program{path: filepath.Join(libs, loaderName), args: append([]string{"--library-path", libs, path}, args...)}, nil
}

// script returns a shell script that runs the program with the script's own arguments.
func (p program) script() string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	for _, env := range p.env {
		name, value, _ := strings.Cut(env, "=")
		fmt.Fprintf(&b, "export %s=%s\n", name, shellQuote(value))
	}
	b.WriteString("exec " + shellQuote(p.path))
	for _, arg := range p.args {
		b.WriteString(" " + shellQuote(arg))
	}
	b.WriteString(" \"$@\"\n")
	return b.String()
}

// shellQuote makes s one word of a POSIX shell.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
