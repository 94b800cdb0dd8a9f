// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cache is the directory all bundles are unpacked into. In it:
//
//	NAME                    link to the bundle in use
//	NAME_VERSION_RECIPE/    a bundle, complete: it gets this name last
//	bin/                    scripts that run unpacked programs
//	download/NAME/          packages of a bundle being fetched, kept when that is interrupted
//	lock                    held while the directory is changed
//	kvm                     what the last probe of KVM found
//
// Removing the directory, whole or in parts, is safe while nothing runs from it.
type cache struct {
	dir      string
	progress io.Writer
}

// CacheDir returns the directory fetched packages are kept in: LEAP_CACHE, by default "leapio" in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("LEAP_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the cache (set LEAP_CACHE): %w", err)
	}
	return filepath.Join(dir, "leapio"), nil
}

// Bundles lists the names Fetch takes.
func Bundles() []string {
	var names []string
	for _, b := range bundles {
		names = append(names, b.name)
	}
	return names
}

// Fetch downloads and unpacks the named bundles, of all when none is named, unless the cache has them. With update, bundles of which the
// archive has newer packages are replaced; no guest may run meanwhile. It says on progress what it does. Without network it fails, naming
// what is missing, only if the cache lacks something. Several processes may fetch at once.
func Fetch(ctx context.Context, progress io.Writer, update bool, names ...string) error {
	c, err := openCache(progress)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = Bundles()
	}
	return c.fetch(ctx, update, names...)
}

// Wrapper returns the path of a script that runs the named program of a bundle ("qemu-system-x86_64", "mandoc", "fio", "nvme", ...) on
// this machine, fetching the bundle if needed.
func Wrapper(ctx context.Context, progress io.Writer, name string) (string, error) {
	c, err := openCache(progress)
	if err != nil {
		return "", err
	}
	p, err := c.program(ctx, name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.dir, "bin", name)
	if have, err := os.ReadFile(path); err == nil && string(have) == p.script() {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	if err := replaceFile(path, []byte(p.script()), 0o755); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	return path, nil
}

// Programs lists the names Wrapper takes.
func Programs() []string {
	var names []string
	for _, b := range bundles {
		for _, path := range b.programs {
			names = append(names, filepath.Base(path))
		}
	}
	return names
}

// openCache makes the cache directory if needed.
func openCache(progress io.Writer) (*cache, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("guests run on x86-64 hosts only, this is %s", runtime.GOARCH)
	}
	dir, err := CacheDir()
	if err != nil {
		return nil, err
	}
	if strings.Contains(dir, ":") {
		return nil, fmt.Errorf("cache directory %s: a colon in it would split library paths; set LEAP_CACHE", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the cache: %w", err)
	}
	return &cache{dir: dir, progress: progress}, nil
}

// say reports progress, one line.
func (c *cache) say(format string, args ...any) {
	fmt.Fprintf(c.progress, "guest: "+format+"\n", args...)
}

// present returns the directory of a bundle made by today's recipe, if the cache has it.
func (c *cache) present(b bundle) (string, bool) {
	target, err := os.Readlink(filepath.Join(c.dir, b.name))
	if err != nil || !strings.HasSuffix(target, "_"+b.recipe()) {
		return "", false
	}
	dir := filepath.Join(c.dir, target)
	if _, err := os.Stat(dir); err != nil {
		return "", false
	}
	return dir, true
}

// bundleDir returns the directory of a bundle, fetching it if needed.
func (c *cache) bundleDir(ctx context.Context, name string) (string, error) {
	if err := c.fetch(ctx, false, name); err != nil {
		return "", err
	}
	b, err := findBundle(name)
	if err != nil {
		return "", err
	}
	dir, ok := c.present(b)
	if !ok {
		return "", fmt.Errorf("%s vanished from the cache %s", name, c.dir)
	}
	return dir, nil
}

// program returns the way to run a program of a bundle.
func (c *cache) program(ctx context.Context, name string) (program, error) {
	for _, b := range bundles {
		for _, path := range b.programs {
			if filepath.Base(path) != name {
				continue
			}
			dir, err := c.bundleDir(ctx, b.name)
			if err != nil {
				return program{}, err
			}
			root := filepath.Join(dir, "root")
			if b.name != bundleQEMU {
				return newProgram(filepath.Join(root, path), filepath.Join(root, libDir))
			}
			// QEMU must take neither data nor modules of another QEMU the machine may have.
			p, err := newProgram(filepath.Join(root, path), filepath.Join(root, libDir),
				"-L", filepath.Join(root, "usr/share/qemu"), "-L", filepath.Join(root, "usr/share/seabios"))
			p.env = []string{"QEMU_MODULE_DIR=" + filepath.Join(root, libDir, "qemu")}
			return p, err
		}
	}
	return program{}, fmt.Errorf("no program %q: want one of %s", name, strings.Join(Programs(), ", "))
}

// fetch fills the cache with the named bundles.
func (c *cache) fetch(ctx context.Context, update bool, names ...string) error {
	wanted := func() ([]bundle, error) {
		var list []bundle
		for _, name := range names {
			b, err := findBundle(name)
			if err != nil {
				return nil, err
			}
			if _, ok := c.present(b); !ok || update {
				list = append(list, b)
			}
		}
		return list, nil
	}
	if list, err := wanted(); err != nil || len(list) == 0 {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	list, err := wanted() // another process may have done it meanwhile
	if err != nil || len(list) == 0 {
		return err
	}
	if err := c.fetchLocked(ctx, list); err != nil {
		var missing []string
		for _, b := range list {
			if _, ok := c.present(b); !ok {
				missing = append(missing, b.name)
			}
		}
		if len(missing) == 0 {
			return fmt.Errorf("updating the cache %s: %w", c.dir, err)
		}
		return fmt.Errorf("the cache %s lacks %s, which must be fetched once over the network: %w", c.dir, strings.Join(missing, ", "), err)
	}
	return nil
}

// fetchLocked fetches bundles while the lock is held.
func (c *cache) fetchLocked(ctx context.Context, list []bundle) error {
	start := time.Now()
	aptDir := filepath.Join(c.dir, "apt")
	leftovers, err := filepath.Glob(filepath.Join(c.dir, "unpack-*")) // of processes that were killed
	if err != nil {
		return err
	}
	for _, dir := range append(leftovers, aptDir) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	defer os.RemoveAll(aptDir)
	c.say("reading the package lists of %s and %s", suiteStable, suiteBackports)
	root, err := openApt(ctx, aptDir)
	if err != nil {
		return err
	}
	for _, b := range list {
		if err := c.fetchBundle(ctx, root, b); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	c.say("done in %.0f s", time.Since(start).Seconds())
	return nil
}

// fetchBundle downloads, unpacks and installs one bundle.
func (c *cache) fetchBundle(ctx context.Context, root *aptRoot, b bundle) error {
	resolved, err := root.resolve(ctx, b.packages...)
	if err != nil {
		return err
	}
	packages, version, err := b.choose(resolved)
	if err != nil {
		return err
	}
	if _, rest, ok := strings.Cut(version, ":"); ok {
		version = rest // an epoch would split library paths
	}
	name := b.name + "_" + version + "_" + b.recipe()
	if dir, ok := c.present(b); ok && filepath.Base(dir) == name {
		c.say("%s %s is the newest", b.name, version)
		return nil
	}
	debs := filepath.Join(c.dir, "download", b.name)
	if err := c.downloadShown(ctx, root, debs, b.name+" "+version, packages); err != nil {
		return err
	}
	c.say("%s %s: unpacking", b.name, version)
	work, err := os.MkdirTemp(c.dir, "unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	unpacked, made := filepath.Join(work, "packages"), filepath.Join(work, "bundle")
	if err := unpack(ctx, debs, unpacked, packages); err != nil {
		return err
	}
	if err := b.build(ctx, unpacked, made); err != nil {
		return err
	}
	if err := c.install(b, made, name); err != nil {
		return err
	}
	return os.RemoveAll(debs)
}

// downloadShown downloads packages and reports every few seconds how far it is.
func (c *cache) downloadShown(ctx context.Context, root *aptRoot, dir, label string, packages []debPackage) error {
	var total int64
	for _, p := range packages {
		total += p.size
	}
	c.say("%s: downloading %d packages, %d MiB", label, len(packages), mebibytes(total))
	done := make(chan error, 1)
	go func() { done <- root.download(ctx, dir, packages) }()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			c.say("%s: %d of %d MiB", label, mebibytes(dirSize(dir)), mebibytes(total))
		}
	}
}

// install gives a finished bundle its name, makes it the one in use and removes the one it replaces.
func (c *cache) install(b bundle, made, name string) error {
	dir := filepath.Join(c.dir, name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(made, dir); err != nil {
		return err
	}
	link := filepath.Join(c.dir, b.name)
	old, err := os.Readlink(link)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next := link + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(name, next); err != nil {
		return err
	}
	if err := os.Rename(next, link); err != nil {
		return err
	}
	if old != "" && old != name {
		return os.RemoveAll(filepath.Join(c.dir, filepath.Base(old)))
	}
	return nil
}

// lock waits until no other process changes the cache, and returns the function that lets the next one in.
func (c *cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("locking the cache: %w", err)
		}
		if !told {
			c.say("waiting for another process that fills the cache")
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// replaceFile writes a file so that others see the old or the new content, nothing between.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// dirSize returns the bytes in the files of dir, as far as they can be read.
func dirSize(dir string) int64 {
	var sum int64
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}

// mebibytes rounds bytes up.
func mebibytes(n int64) int64 { return (n + 1<<20 - 1) >> 20 }
