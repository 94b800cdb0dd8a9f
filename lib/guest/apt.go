// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The suites packages are taken from: the stable one, and its backports for what is too old there. They are the only place to change for
// a newer Debian.
const (
	suiteStable    = "trixie"
	suiteBackports = "trixie-backports"
)

// archiveKeyrings are the paths at which the package debian-archive-keyring installs the archive's keys, newest name first.
var archiveKeyrings = []string{
	"usr/share/keyrings/debian-archive-keyring.pgp",
	"usr/share/keyrings/debian-archive-keyring.gpg",
}

// debPackage is one package apt chose, as printed by --print-uris.
type debPackage struct {
	name, version string
	file          string // base name of the .deb
	size          int64  // bytes
	sha256        string // hexadecimal
}

// aptRoot is a private apt root: its own source list, package lists and caches, and an empty dpkg status, so that apt resolves complete
// sets of packages. It shares with the machine only the archive's address, its keys, and what apt is told about downloading (proxies).
type aptRoot struct {
	dir    string
	source aptSource
}

// openApt makes the private root in dir, which must not exist, and downloads the package lists. The caller removes dir.
func openApt(ctx context.Context, dir string) (*aptRoot, error) {
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("making an apt root: %w", err)
		}
	}
	r := &aptRoot{dir: dir}
	if err := r.configure(ctx); err != nil {
		return nil, err
	}
	return r, r.updateVerified(ctx)
}

// configure writes the root's apt.conf and finds the Debian source. The machine's configuration is not read again through our apt.conf,
// since its hooks may need rights or a system we do not have; only its Acquire settings are carried over.
func (r *aptRoot) configure(ctx context.Context) error {
	dump, err := run(ctx, "", nil, "apt-config", "dump")
	if err != nil {
		return fmt.Errorf("reading apt's configuration: %w", err)
	}
	var conf strings.Builder
	for _, line := range strings.Split(dump, "\n") {
		if strings.HasPrefix(line, "Acquire::") && !strings.HasPrefix(line, "Acquire::IndexTargets") &&
			!strings.HasPrefix(line, "Acquire::Languages") {
			fmt.Fprintln(&conf, line)
		}
	}
	set := func(key, value string) { fmt.Fprintf(&conf, "%s \"%s\";\n", key, value) }
	set("Dir::State", filepath.Join(r.dir, "state"))
	set("Dir::State::status", filepath.Join(r.dir, "state/status"))
	set("Dir::Cache", filepath.Join(r.dir, "cache"))
	set("Dir::Etc::sourcelist", filepath.Join(r.dir, "etc/debian.sources"))
	for _, key := range []string{"sourceparts", "preferences", "preferencesparts", "main", "parts"} {
		set("Dir::Etc::"+key, "/dev/null")
	}
	set("Acquire::Languages", "none")
	set("Acquire::GzipIndexes", "true")
	set("Acquire::ForceHash", "SHA256")
	set("APT::Architecture", "amd64")
	set("APT::Install-Recommends", "false")
	set("APT::Sandbox::User", "root") // as root too, the cache may be readable by the user alone
	set("APT::Update::Error-Mode", "any")
	if err := os.WriteFile(filepath.Join(r.dir, "apt.conf"), []byte(conf.String()), 0o644); err != nil {
		return fmt.Errorf("making an apt root: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "state/status"), nil, 0o644); err != nil {
		return fmt.Errorf("making an apt root: %w", err)
	}
	r.source, err = machineSource(ctx)
	return err
}

// machineSource returns the Debian source of the machine's apt configuration, or the mirror LEAP_DEBIAN_URI names.
func machineSource(ctx context.Context) (aptSource, error) {
	if uri := os.Getenv("LEAP_DEBIAN_URI"); uri != "" {
		return aptSource{uris: []string{uri}, suites: []string{suiteStable}}, nil
	}
	shell, err := run(ctx, "", nil, "apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d")
	if err != nil {
		return aptSource{}, fmt.Errorf("reading apt's configuration: %w", err)
	}
	paths := map[string]string{}
	for _, line := range strings.Split(shell, "\n") {
		if key, value, ok := strings.Cut(line, "="); ok {
			paths[key] = strings.Trim(value, "'")
		}
	}
	sources, err := readSources(paths["LIST"], paths["PARTS"])
	if err != nil {
		return aptSource{}, err
	}
	return debianSource(sources)
}

// updateVerified downloads the lists of the wanted suites. The key ring the machine names may be too old for them, or name keys of one
// release only: then the archive's whole key ring is tried, first the machine's own, then the one in the package, fetched from the
// machine's own release and thus verified by the keys the machine already trusts.
func (r *aptRoot) updateVerified(ctx context.Context) error {
	suites := []string{suiteStable, suiteBackports}
	first := r.update(ctx, suites, r.source.signedBy)
	if first == nil || !isSignatureError(first) {
		return first
	}
	for _, path := range archiveKeyrings {
		path = "/" + path
		if _, err := os.Stat(path); err == nil && r.update(ctx, suites, path) == nil {
			return nil
		}
	}
	keyring, err := r.packagedKeyring(ctx)
	if err == nil {
		err = r.update(ctx, suites, keyring)
	}
	if err != nil {
		return fmt.Errorf("no key ring on this machine verifies Debian %s: install a newer debian-archive-keyring package: %w",
			suiteStable, errors.Join(first, err))
	}
	return nil
}

// packagedKeyring unpacks debian-archive-keyring from the release the machine itself uses and returns the path of the key ring in it.
func (r *aptRoot) packagedKeyring(ctx context.Context) (string, error) {
	suite := r.source.suites[slices.IndexFunc(r.source.suites, baseSuite.MatchString)]
	if err := r.update(ctx, []string{suite}, r.source.signedBy); err != nil {
		return "", err
	}
	packages, err := r.resolve(ctx, "debian-archive-keyring")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(r.dir, "keyring")
	if err := r.download(ctx, dir, packages); err != nil {
		return "", err
	}
	if err := unpack(ctx, dir, dir, packages); err != nil {
		return "", err
	}
	for _, path := range archiveKeyrings {
		path = filepath.Join(dir, path)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("the package debian-archive-keyring holds no key ring")
}

// isSignatureError tells apt's complaints about keys from those about the network.
func isSignatureError(err error) bool {
	for _, mark := range []string{"NO_PUBKEY", "EXPKEYSIG", "couldn't be verified", "is not signed", "Missing key", "Sub-process /usr/bin/sqv"} {
		if strings.Contains(err.Error(), mark) {
			return true
		}
	}
	return false
}

// update replaces the root's source list and downloads the lists it names.
func (r *aptRoot) update(ctx context.Context, suites []string, signedBy string) error {
	list := filepath.Join(r.dir, "etc/debian.sources")
	if err := os.WriteFile(list, []byte(r.source.stanza(suites, signedBy)), 0o644); err != nil {
		return fmt.Errorf("making an apt root: %w", err)
	}
	_, err := r.apt(ctx, "", "update")
	return err
}

// apt runs apt-get in the private root, in directory dir.
func (r *aptRoot) apt(ctx context.Context, dir string, args ...string) (string, error) {
	env := append(os.Environ(), "APT_CONFIG="+filepath.Join(r.dir, "apt.conf"), "LC_ALL=C")
	return run(ctx, dir, env, "apt-get", append(args, "-q")...)
}

// resolve returns the wanted packages and everything they depend on.
func (r *aptRoot) resolve(ctx context.Context, wanted ...string) ([]debPackage, error) {
	out, err := r.apt(ctx, "", append([]string{"--print-uris", "-y", "install"}, wanted...)...)
	if err != nil {
		return nil, err
	}
	return parsePrintURIs(out)
}

// parsePrintURIs reads the lines "'URI' FILE SIZE SHA256:HASH" of apt-get --print-uris; others are apt's words to a person.
func parsePrintURIs(out string) ([]debPackage, error) {
	var packages []debPackage
	for _, line := range strings.Split(out, "\n") {
		if !strings.HasPrefix(line, "'") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("apt printed %q: want an address, a file, a size and a hash", line)
		}
		p := debPackage{file: fields[1]}
		parts := strings.Split(strings.TrimSuffix(p.file, ".deb"), "_")
		size, err := strconv.ParseInt(fields[2], 10, 64)
		hash, isSHA256 := strings.CutPrefix(fields[3], "SHA256:")
		if err != nil || len(parts) != 3 || !isSHA256 || p.file != filepath.Base(p.file) {
			return nil, fmt.Errorf("apt printed %q: not a package with its SHA-256", line)
		}
		p.name, p.version = parts[0], strings.ReplaceAll(parts[1], "%3a", ":")
		p.size, p.sha256 = size, hash
		packages = append(packages, p)
	}
	return packages, nil
}

// download puts the packages' files into dir. Complete files from an earlier, interrupted call are kept, partial ones continued.
func (r *aptRoot) download(ctx context.Context, dir string, packages []debPackage) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("downloading packages: %w", err)
	}
	args := []string{"download"}
	for _, p := range packages {
		path := filepath.Join(dir, p.file)
		if p.verify(path) == nil {
			continue
		}
		// apt continues a short file and takes a longer one for complete.
		if info, err := os.Stat(path); err == nil && info.Size() >= p.size {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("downloading packages: %w", err)
			}
		}
		args = append(args, p.name+"="+p.version)
	}
	if len(args) > 1 {
		if _, err := r.apt(ctx, dir, args...); err != nil {
			return err
		}
	}
	for _, p := range packages {
		path := filepath.Join(dir, p.file)
		if err := p.verify(path); err != nil {
			return fmt.Errorf("downloading packages: %w", errors.Join(err, os.Remove(path)))
		}
	}
	return nil
}

// verify compares the file at path with the hash in the signed package list.
func (p debPackage) verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != p.sha256 {
		return fmt.Errorf("%s: SHA-256 is %s, the package list says %s", p.file, got, p.sha256)
	}
	return nil
}

// unpack extracts the packages' files, found in debs, into dir. Their maintainer scripts do not run.
func unpack(ctx context.Context, debs, dir string, packages []debPackage) error {
	for _, p := range packages {
		if _, err := run(ctx, "", nil, "dpkg-deb", "--extract", filepath.Join(debs, p.file), dir); err != nil {
			return fmt.Errorf("unpacking %s: %w", p.file, err)
		}
	}
	return nil
}

// decompress returns the content of a file compressed as its name's ending says (.xz, .zst, .gz), by apt's own helper.
func decompress(ctx context.Context, path string) ([]byte, error) {
	out, err := run(ctx, "", nil, "/usr/lib/apt/apt-helper", "cat-file", path)
	if err != nil {
		return nil, fmt.Errorf("decompressing %s: %w", path, err)
	}
	return []byte(out), nil
}

// run executes a command to its end and returns its standard output. The error carries what it said: apt writes reasons to both outputs.
func run(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, env
	cmd.WaitDelay = 5 * time.Second
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s is needed and not installed: %w", name, err)
	case errors.As(err, &exit):
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), args[0], err, complaints(words.String()+"\n"+out.String()))
	case err != nil:
		return "", fmt.Errorf("%s %s: %w", filepath.Base(name), args[0], err)
	}
	return out.String(), nil
}

// complaints keeps apt's error and warning lines, or everything when there are none.
func complaints(words string) string {
	var lines []string
	for _, line := range strings.Split(words, "\n") {
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "W: ") || strings.HasPrefix(line, "Err:") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return strings.TrimSpace(words)
	}
	return strings.Join(lines, "; ")
}
