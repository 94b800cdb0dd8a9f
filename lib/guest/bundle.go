// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bundle says what is taken out of which Debian packages. Unpacked, it is a directory with a tree "root", laid out like the root file
// system the packages expect, and for kernels the kernel files beside it.
type bundle struct {
	name string
	// packages are handed to apt ("name" or "name/suite"); the first one's version names the bundle. Of the packages they depend on only
	// those whose name starts with one of dependencies are downloaded.
	packages     []string
	dependencies []string
	programs     []string // taken with the shared libraries they need
	files        []string // taken as they are; glob patterns
	modules      []string // kernel modules, taken with the modules they need
	bootModules  []string // those of them the guest's init loads, where they are not built in
}

// bundleFormat changes when the code below lays out the same recipe differently, so that older caches are filled again.
const bundleFormat = "1"

// libraries are the name prefixes of packages that hold shared libraries.
var libraries = []string{"lib", "zlib1g"}

// kernelPackages are the name prefixes of the packages the kernel's meta package stands for.
var kernelPackages = []string{"linux-image-", "linux-binary-", "linux-modules-", "linux-base-"}

// guestModules is what a job can load with modprobe, beside what the kernels have built in (nvme and ext4 among them).
var guestModules = []string{
	"xfs", "nvme-tcp", "nvmet-tcp", "virtio_net", "virtio_blk", "vfio-pci", "uio_pci_generic", "null_blk", "loop",
}

// Names of bundles other than kernels.
const (
	bundleQEMU   = "qemu"
	bundleTools  = "tools"
	bundleOVMF   = "ovmf"
	bundleMandoc = "mandoc"
)

var bundles = []bundle{
	{
		name: bundleQEMU,
		packages: []string{
			"qemu-system-x86/" + suiteBackports, "qemu-system-common/" + suiteBackports,
			"qemu-system-data/" + suiteBackports, "seabios/" + suiteBackports,
		},
		dependencies: slices.Concat(libraries, []string{"ipxe-qemu"}),
		programs:     []string{"usr/bin/qemu-system-x86_64"},
		files: []string{
			"usr/share/qemu/pvh.bin", "usr/share/qemu/linuxboot_dma.bin", "usr/share/qemu/kvmvapic.bin",
			"usr/share/qemu/efi-virtio.rom", "usr/share/seabios/bios-256k.bin",
		},
	},
	{
		name:         bundleTools,
		packages:     []string{"nvme-cli", "busybox-static", "fio", "e2fsprogs", "xfsprogs"},
		dependencies: libraries,
		programs: []string{
			"usr/bin/busybox", "usr/bin/fio", "usr/sbin/nvme", "usr/sbin/mke2fs", "usr/sbin/e2fsck", "usr/sbin/debugfs",
			"usr/sbin/mkfs.xfs", "usr/sbin/xfs_repair",
		},
		files: []string{"usr/sbin/mkfs.ext[234]", "usr/sbin/fsck.ext[234]", "etc/mke2fs.conf"},
	},
	{
		name: string(KernelCloud), packages: []string{"linux-image-cloud-amd64/" + suiteStable},
		dependencies: kernelPackages, modules: guestModules,
	},
	{
		name: string(KernelBackports), packages: []string{"linux-image-cloud-amd64/" + suiteBackports},
		dependencies: kernelPackages, modules: guestModules,
	},
	{name: bundleOVMF, packages: []string{"ovmf"}, files: []string{"usr/share/ovmf/OVMF.fd"}},
	{name: bundleMandoc, packages: []string{"mandoc"}, dependencies: libraries, programs: []string{"usr/bin/mandoc"}},
}

// findBundle returns the bundle of that name.
func findBundle(name string) (bundle, error) {
	for _, b := range bundles {
		if b.name == name {
			return b, nil
		}
	}
	return bundle{}, fmt.Errorf("no bundle %q: want one of %s", name, strings.Join(Bundles(), ", "))
}

// recipe identifies the rules a bundle was made by; part of its directory's name.
func (b bundle) recipe() string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s %q %q %q %q", bundleFormat, b.packages, b.programs, b.files,
		slices.Concat(b.modules, []string{"boot"}, b.bootModules))))
	return hex.EncodeToString(sum[:4])
}

// isKernel reports whether the bundle is a kernel.
func (b bundle) isKernel() bool { return strings.HasPrefix(b.packages[0], "linux-image-") }

// choose drops the packages the bundle has no use for and returns the version of its first package.
func (b bundle) choose(resolved []debPackage) (chosen []debPackage, version string, err error) {
	for _, p := range resolved {
		wanted := slices.ContainsFunc(b.packages, func(name string) bool {
			name, _, _ = strings.Cut(name, "/")
			return name == p.name
		})
		library := slices.ContainsFunc(b.dependencies, func(prefix string) bool { return strings.HasPrefix(p.name, prefix) })
		// No program of ours links these: parts of systemd and Python that call themselves libraries, and ICU, which is large.
		for _, prefix := range []string{"libpython", "libsystemd-shared", "libicu"} {
			library = library && !strings.HasPrefix(p.name, prefix)
		}
		if wanted || library {
			chosen = append(chosen, p)
		}
		if first, _, _ := strings.Cut(b.packages[0], "/"); first == p.name {
			version = p.version
		}
	}
	if version == "" {
		return nil, "", fmt.Errorf("apt did not choose %s", b.packages[0])
	}
	return chosen, version, nil
}

// build makes the bundle in dir out of the unpacked packages in unpacked.
func (b bundle) build(ctx context.Context, unpacked, dir string) error {
	root := filepath.Join(dir, "root")
	libs := map[string]string{}
	for _, path := range b.programs {
		if err := copyFile(filepath.Join(unpacked, path), filepath.Join(root, path)); err != nil {
			return err
		}
		needed, err := sharedLibraries(unpacked, filepath.Join(unpacked, path))
		if err != nil {
			return err
		}
		maps.Copy(libs, needed)
	}
	for name, path := range libs {
		if err := copyFile(path, filepath.Join(root, libDir, name)); err != nil {
			return err
		}
	}
	for _, pattern := range b.files {
		if err := copyGlob(unpacked, root, pattern); err != nil {
			return err
		}
	}
	switch {
	case b.isKernel():
		return b.buildKernel(ctx, unpacked, dir)
	case b.name == bundleTools:
		return linkApplets(ctx, root)
	}
	return nil
}

// buildKernel adds vmlinuz, the vmlinux inside it, and the modules.
func (b bundle) buildKernel(ctx context.Context, unpacked, dir string) error {
	trees, err := filepath.Glob(filepath.Join(unpacked, "usr/lib/modules/*/modules.builtin"))
	if err != nil || len(trees) != 1 {
		return fmt.Errorf("found %d module trees in the packages, want one (%w)", len(trees), errors.Join(err, fs.ErrNotExist))
	}
	tree := filepath.Dir(trees[0])
	release := filepath.Base(tree)
	image := filepath.Join(unpacked, "boot", "vmlinuz-"+release)
	if _, err := os.Stat(image); err != nil {
		image = filepath.Join(tree, "vmlinuz") // where newer packages put it
	}
	if err := copyFile(image, filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := extractKernel(ctx, image, filepath.Join(dir, "vmlinux")); err != nil {
		return err
	}
	set, err := readModuleTree(tree)
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(b.modules, b.bootModules) {
		if err := set.add(ctx, name); err != nil {
			return err
		}
	}
	var boot strings.Builder
	for _, name := range b.bootModules {
		if _, ok := set.modules[moduleName(name)]; ok {
			fmt.Fprintln(&boot, moduleName(name))
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "root/etc"), 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "root/etc/modules"), []byte(boot.String()), 0o644),
		set.write(filepath.Join(dir, "root/usr/lib/modules", release)))
}

// linkApplets makes the links by which busybox's commands are found, so that no boot spends time on it, and the directories and links a
// root file system has where /bin and /lib are parts of /usr.
func linkApplets(ctx context.Context, root string) error {
	list, err := run(ctx, "", nil, filepath.Join(root, "usr/bin/busybox"), "--list-full")
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(list) {
		if !strings.HasPrefix(applet, "usr/") {
			applet = "usr/" + applet
		}
		path := filepath.Join(root, applet)
		if _, err := os.Lstat(path); err == nil {
			continue // busybox itself, or a real program of that name
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/usr/bin/busybox", path); err != nil {
			return err
		}
	}
	links := map[string]string{
		"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
		"usr/lib64/" + loaderName: "/" + libDir + "/" + loaderName,
	}
	for _, name := range slices.Sorted(maps.Keys(links)) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(links[name], path); err != nil {
			return err
		}
	}
	return nil
}

// copyGlob copies the files that match pattern below from to the same places below to; at least one must.
func copyGlob(from, to, pattern string) error {
	paths, err := filepath.Glob(filepath.Join(from, pattern))
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("%s: in none of the packages: %w", pattern, fs.ErrNotExist)
	}
	for _, path := range paths {
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if info.Mode().Type() != fs.ModeSymlink {
			if err := copyFile(path, filepath.Join(to, rel)); err != nil {
				return err
			}
			continue
		}
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, filepath.Join(to, rel)); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a regular file with its permissions, making the directories above the copy.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", from)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
