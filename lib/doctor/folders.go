// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/soc"
	"github.com/leapio/leapio/lib/units"
	"github.com/leapio/leapio/lib/wpt"
)

// broker is the name of leap-wpt's files.
const broker = "wpt"

// folder looks at a folder that others must not write to.
func folder(check, dir string, forbidden fs.FileMode, fix string) []Finding {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return one(check, OK, dir+" is not there; daemons make it", "")
	case err != nil:
		return []Finding{failure(check, err, "")}
	case !info.IsDir():
		return one(check, Fail, dir+" is no folder", "move it away")
	}
	found := fmt.Sprintf("%s has mode %04o and belongs to %s", dir, info.Mode().Perm(), owner(info))
	if info.Mode().Perm()&forbidden != 0 {
		return one(check, Fail, found, fix)
	}
	return one(check, OK, found, "")
}

// owner is the user of a file.
func owner(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "an unknown user"
	}
	uid := strconv.FormatUint(uint64(st.Uid), 10)
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return "user " + uid
}

// runFolder looks at RUN, and whether the sockets of ports fit into addresses.
func (d *Doctor) runFolder(context.Context) []Finding {
	dir := d.Paths.Run
	findings := folder("run-folder", dir, 0o002, "chmod o-w: whoever writes there can put sockets in the place of ours")
	room := len(d.Paths.PortSocket("x"))
	longest := strings.Repeat("x", units.MaxName)
	if err := api.CheckSocketPath(d.Paths.PortSocket(longest)); err != nil {
		for len(longest) > 0 && api.CheckSocketPath(d.Paths.PortSocket(longest)) != nil {
			longest = longest[1:]
		}
		findings = append(findings, Finding{"socket-paths", Warn, fmt.Sprintf("names of ports have room for %d characters in %s, not for %d", len(longest), dir, units.MaxName),
			"set LEAP_RUN_DIR to a shorter folder"})
	} else {
		findings = append(findings, Finding{"socket-paths", OK, fmt.Sprintf("%d bytes with the longest name", room-1+units.MaxName), ""})
	}
	return append(findings, d.sockets()...)
}

// sockets looks at the modes of control sockets: who opens them can do everything,
// and at the link read the memory of guests.
func (d *Doctor) sockets() []Finding {
	all, err := filepath.Glob(filepath.Join(d.Paths.Run, "*.sock"))
	if err != nil {
		return []Finding{failure("sockets", err, "")}
	}
	var findings []Finding
	for _, path := range all {
		check := "socket " + filepath.Base(path)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it has just gone
		case err != nil:
			findings = append(findings, failure(check, err, ""))
		case info.Mode().Type() != fs.ModeSocket:
			findings = append(findings, Finding{check, Fail, path + " is no socket", "move it away: a daemon does not start there"})
		case info.Mode().Perm()&0o077 != 0:
			findings = append(findings, Finding{check, Fail, fmt.Sprintf("mode %04o lets others in", info.Mode().Perm()), "chmod 600 " + path})
		default:
			findings = append(findings, Finding{check, OK, fmt.Sprintf("mode %04o, of %s", info.Mode().Perm(), owner(info)), ""})
		}
	}
	return findings
}

// stateFolder looks at STATE, and at the room there is.
func (d *Doctor) stateFolder(context.Context) []Finding {
	dir := d.Paths.State
	findings := folder("state-folder", dir, 0o022, "chmod go-w: whoever writes there can change volumes")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return findings // the folder says why
	}
	free := units.Size(st.Bavail * uint64(st.Bsize))
	found := fmt.Sprintf("%s free in %s", free.Human(), dir)
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		return append(findings, Finding{"state-room", Fail, dir + " is read-only", "nothing that is made can be kept; mount it read-write"})
	case st.Blocks > 0 && st.Bavail*100 < st.Blocks:
		return append(findings, Finding{"state-room", Warn, found + ", less than 1 %", "make room: volumes that are files fail when it is full"})
	}
	return append(findings, Finding{"state-room", OK, found, ""})
}

// runtimes are the names of runtimes that have left something in RUN or STATE, and
// the one without a name.
func (d *Doctor) runtimes() []string {
	names := map[string]bool{api.DefaultRuntime: true}
	for _, pattern := range []string{
		filepath.Join(d.Paths.Run, "*.sock"), d.Paths.PidFile("*"), d.Paths.StateFile("*"),
	} {
		all, _ := filepath.Glob(pattern) // the patterns are well-formed
		for _, path := range all {
			name := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
			if api.CheckRuntime(name) == nil {
				names[name] = true
			}
		}
	}
	var all []string
	for name := range names {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// stateFiles has the daemons' own code read what they keep.
func (d *Doctor) stateFiles(context.Context) []Finding {
	look := func(name string, read func() error) Finding {
		check, path := "state-file "+name, d.Paths.StateFile(name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return Finding{check, Skip, path + " is not there: nothing was made", ""}
		}
		if err := read(); err != nil {
			return failure(check, err, "")
		}
		return Finding{check, OK, path + " can be read", ""}
	}
	findings := []Finding{look(broker, func() error {
		_, err := wpt.Check(wpt.Config{Paths: d.Paths})
		return err
	})}
	for _, name := range d.runtimes() {
		findings = append(findings, look(name, func() error {
			_, err := soc.Check(soc.Config{Paths: d.Paths, Name: name})
			return err
		}))
	}
	return findings
}

// pidFile is what a pid file says.
type pidFile struct {
	there  bool
	pid    int  // 0: none is in it
	locked bool // by a process that lives
}

// readPidFile looks at a pid file without trying its lock, which a daemon that
// starts could want just then.
func readPidFile(path string) (p pidFile, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	p.there = true
	p.pid, _ = strconv.Atoi(string(bytes.TrimSpace(b))) // empty while its daemon starts
	info, err := os.Stat(path)
	if err != nil {
		return p, err
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return p, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		p.locked = isLocked(string(locks), st.Ino)
	}
	return p, nil
}

// isLocked looks for a lock of flock(2) in /proc/locks, proc_locks(5). Devices are
// not compared: some file systems have another one there.
func isLocked(locks string, inode uint64) bool {
	want := ":" + strconv.FormatUint(inode, 10)
	for line := range strings.Lines(locks) {
		fields := strings.Fields(line)
		if len(fields) > 5 && fields[1] == "FLOCK" && strings.HasSuffix(fields[5], want) {
			return true
		}
	}
	return false
}
