// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/nvme"
	"github.com/leapio/leapio/lib/vfiouser/vfiousertest"
)

// TestConfined does all that daemons do while they are confined as by their
// units, without a service manager: a setting that takes something away that they
// need, or a system call that is not on the list, fails it.
func TestConfined(t *testing.T) {
	if auditArch == 0 {
		t.Skip("no filters are made for this machine")
	}
	programs := buildPrograms(t)
	for _, name := range []string{"calls", "threads", "unit"} {
		t.Run(name, func(t *testing.T) {
			r := &life{confined: &confined{installed: newInstalled(t, programs)}}
			r.manager()
			switch name {
			case "threads": // as where a container runtime forbids io_uring
				r.refused = []string{"io_uring_setup", "io_uring_enter", "io_uring_register"}
			case "unit":
				if os.Geteuid() != 0 {
					t.Skip("only root can do what a service manager does")
				}
				probe := exec.Command("true")
				probe.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
				if err := probe.Run(); errors.Is(err, unix.EPERM) {
					t.Skip("this root may not make namespaces")
				}
				r.unit()
			}
			r.begin()
			r.change()
			r.look()
			r.replace()
			r.suffer()
			if name == "calls" { // it takes seconds
				r.hang()
			}
			r.end()
		})
	}
}

// confined are daemons that are confined.
type confined struct {
	*installed
	refused []string        // system calls
	box     func() *sandbox // nil: none
}

// unit has the daemons run as the user of their units, in folders of the machine's
// names.
func (r *confined) unit() {
	const user, disk = 54321, 54322
	write := func(name, text string) string {
		path := filepath.Join(r.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			r.t.Fatal(err)
		}
		return path
	}
	for _, path := range []string{r.dir, r.programs} {
		if err := os.Chmod(path, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"run": 0o755, "state": 0o700} {
		path := filepath.Join(r.dir, name)
		if err := errors.Join(os.Chown(path, user, user), os.Chmod(path, mode)); err != nil {
			r.t.Fatal(err)
		}
	}
	users := write("passwd", fmt.Sprintf("root:x:0:0::/root:/bin/sh\nleapio:x:%d:%d::/var/lib/leapio:/usr/sbin/nologin\n", user, user))
	groups := write("group", fmt.Sprintf("root:x:0:\nleapio:x:%d:\ndisk:x:%d:\n", user, disk))
	r.box = func() *sandbox {
		return &sandbox{
			UID: user, GID: user, Groups: []uint32{disk},
			Bound: []bound{
				{Path: "/run", Mode: 0o755}, {Path: "/run/leapio", Source: filepath.Join(r.dir, "run")},
				{Path: "/var/lib", Mode: 0o755}, {Path: "/var/lib/leapio", Source: filepath.Join(r.dir, "state")},
				{Path: "/usr/local/bin", Source: r.programs},
				{Path: "/etc/passwd", Source: users}, {Path: "/etc/group", Source: groups},
			},
			// StateDirectory=.
			writable: []string{"/var/lib/leapio"},
		}
	}
}

// start starts a daemon by the words of its unit and more, as it is confined.
func (r *confined) start(daemon, name string, more ...string) {
	r.t.Helper()
	s := readService(r.t, daemon)
	var box *sandbox
	argv := s.words("ExecStart")
	if r.box != nil {
		box = r.box()
	} else {
		argv[0] = filepath.Join(r.programs, filepath.Base(argv[0]))
		if i := slices.Index(argv, "--group"); i >= 0 { // here is no such group
			argv = slices.Delete(argv, i, i+2)
		}
	}
	c := s.confine(r.t, box)
	for _, call := range r.refused {
		c.Refused = append(c.Refused, callNumbers(r.t, "amd64")[call]) // these are new, and the same everywhere
	}
	text, err := json.Marshal(c)
	if err != nil {
		r.t.Fatal(err)
	}
	self, err := exec.LookPath("confined")
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(self, append(argv, more...)...)
	cmd.Args[0] = "confined"
	cmd.Env = append(os.Environ(), envConfinement+"="+string(text))
	if r.box != nil {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET=/run/leapio/notify")
	} else {
		cmd.Env = append(append(cmd.Env, r.folders()...), "NOTIFY_SOCKET="+filepath.Join(r.dir, "run", "notify"))
	}
	if p := r.launch(name, cmd); !slices.Contains(more, "--standby") {
		r.serves(name, p)
		c.check(r.t, p.cmd.Process.Pid)
	}
}

// check sees that a process is confined, as proc_pid_status(5) has it.
func (c *confinement) check(t testing.TB, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", fmt.Sprintf("Umask:\t%04o\n", c.Umask)}
	if box := c.Sandbox; box != nil {
		var set uint64
		for _, capability := range box.Capabilities {
			set |= 1 << capability
		}
		want = append(want, fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", box.UID), fmt.Sprintf("CapEff:\t%016x\n", set), fmt.Sprintf("CapBnd:\t%016x\n", set))
	}
	for _, line := range want {
		if !strings.Contains(string(status), line) {
			t.Errorf("process %d has no %q in:\n%s", pid, line, status)
		}
	}
}

// stopped reports whether a signal has stopped all threads of a process.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, thread := range threads {
		if stat, err := os.ReadFile(thread); err != nil || !bytes.Contains(stat, []byte(") T ")) {
			return false
		}
	}
	return len(threads) > 0
}

// babble says something to a control socket that is no request.
func (r *confined) babble(socket string) {
	r.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(r.dir, "run", socket))
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := conn.Write([]byte("what?\r\n\r\n")); err != nil {
		r.t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
		r.t.Fatalf("%s answers %q, %v", socket, answer, err)
	}
}

// life is what daemons do in theirs.
type life struct {
	*confined
	vm1, vm2, vm3 *installedGuest // shadow doorbells, mapped ones, and memory that is not shared
	host          string          // the URL of a listener
}

// begin starts daemons, with volumes of all kinds, and ports with all kinds of
// doorbells and memory.
func (r *life) begin() {
	t := r.t
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !cpus.IsSet(cpu) {
		cpu++
	}
	// Beside the unit's words: a CPU, and a setup, whose commands the runtime runs.
	const setup = "leap-soc volume create far1 mem size=16M\nleap-wpt port add vm9 --owner 65534:65534\n"
	if err := os.WriteFile(filepath.Join(r.dir, "run", "setup"), []byte(setup), 0o644); err != nil {
		t.Fatal(err)
	}
	r.start("leap-wpt", "wpt")
	r.start("leap-soc", "soc")
	r.start("leap-soc", "far", "--name", "far", "--pollers", strconv.Itoa(cpu), "--setup", r.inside("run/setup"))
	r.run("leap-soc wait runtime far applied --timeout 60s")
	url := r.run("leap-rdma listen tcp://127.0.0.1:0 far1 --allow any --runtime far")
	for _, volume := range []string{"d1 file size=16M", "d2 mem size=16M", "d3 null size=16M", "e1 file size=16M", "f1 mem size=16M", "h1 file size=4M"} {
		r.run("leap-soc volume create " + volume)
	}
	r.run("leap-rdma connect " + url + " d4")
	r.run("leap-wpt port add vm2 --doorbells map")
	r.run("leap-qmap map vm1 d1 d2 d3 d4")
	r.run("leap-qmap map vm2 e1")
	r.run("leap-qmap map vm3 f1")
	r.vm1 = r.guest("vm1", vfiousertest.MemoryOptions{}, true)
	r.vm2 = r.guest("vm2", vfiousertest.MemoryOptions{}, false)
	r.vm3 = r.guest("vm3", vfiousertest.MemoryOptions{Private: true}, false)
	r.use()
	r.vm3.use(1, true)
}

// inside is the path of a file of ours as the daemons see it.
func (r *life) inside(path string) string {
	if r.box == nil {
		return filepath.Join(r.dir, path)
	}
	return strings.Replace(path, "run/", "/run/leapio/", 1)
}

// use has two guests do I/O on all kinds of volumes.
func (r *life) use() {
	r.t.Helper()
	for nsid, keeps := range []bool{true, true, false, true} {
		r.vm1.use(uint32(nsid)+1, keeps)
	}
	r.vm2.use(1, true)
}

// enabled waits until these guests have their drives.
func (r *life) enabled() {
	r.t.Helper()
	r.run("leap-soc wait port vm1 enabled --timeout 60s")
	r.run("leap-soc wait port vm2 enabled --timeout 60s")
}

// change changes the shape of volumes, and has a host use one.
func (r *life) change() {
	r.run("leap-soc volume resize d1 32M")
	r.run("leap-soc volume resize d2 8M --shrink")
	r.run("leap-soc volume resize d2 16M")
	for nsid := range uint32(2) {
		if _, err := r.vm1.drive.AdminCommand(nvme.SQE{Opcode: uint8(nvme.AdminFormatNVM), NSID: nsid + 1}); err != nil {
			r.t.Fatal("format:", err)
		}
	}
	r.run("leap-soc subsystem create s1 --allow-any")
	r.run("leap-soc namespace add s1 h1")
	r.host = r.run("leap-rdma listen tcp://127.0.0.1:0 s1")
	r.run("leap-rdma discover " + r.host[:strings.LastIndex(r.host, "/")])
	r.run("leap-rdma bench " + r.host + " --pattern mixed --verify --overwrite --passes 1 --queues 2 --data-digest")
}

// look has all that can be seen be shown.
func (r *life) look() {
	for _, line := range []string{
		"leap-soc show", "leap-soc show limits", "leap-soc stat", "leap-soc stat --by queue", "leap-soc metrics", "leap-soc export", "leap-soc wait port vm1 enabled",
		"leap-wpt show", "leap-wpt metrics", "leap-wpt port list", "leap-qmap list", "leap-rdma list",
	} {
		r.run(line)
	}
	for _, socket := range []string{"wpt.sock", "soc.sock"} {
		r.babble(socket)
	}
}

// replace has other processes take over from each daemon, in all ways.
func (r *life) replace() {
	t := r.t
	program := func(name string) string {
		if r.box != nil {
			return "/usr/local/bin/" + name
		}
		return filepath.Join(r.programs, name)
	}
	if err := r.command("leap-soc", "upgrade", program("leap-wpt")).Run(); err == nil {
		t.Error("leap-wpt is leap-soc")
	}
	r.run("leap-wpt upgrade " + program("leap-wpt"))
	r.enabled()
	r.use()
	r.run("leap-soc upgrade " + program("leap-soc"))
	r.gone("soc", 0)
	r.enabled()
	r.use()
	before := r.pid("soc")
	r.start("leap-soc", "soc", "--standby")
	next := r.daemons["soc"]
	r.wait("it is on standby", func() bool { return strings.Contains(next.read(), "on standby") }, next)
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.serves("soc", next)
	r.enabled()
	r.use()
	r.vm3.use(1, true)
}

// suffer has a guest take its memory away, which is a fault in leap-soc.
func (r *life) suffer() {
	t := r.t
	r.vm3.close()
	r.run("leap-soc wait port vm3 waiting --timeout 60s")
	thief := r.guest("vm3", vfiousertest.MemoryOptions{High: 1 << 20}, false)
	at, _, err := thief.memory.AllocHigh(vfiousertest.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := thief.memory.Shrink(16 << 20); err != nil {
		t.Fatal(err)
	}
	write := nvme.SQE{Opcode: uint8(nvme.IOWrite), NSID: 1, PRP1: at}
	if err := thief.pair.Submit(write, func(nvme.CQE) {}); err != nil {
		t.Fatal(err)
	}
	if err := thief.drive.WaitCSTS("fatal", limit, nvme.CSTS.CFS); err != nil {
		t.Fatal(err)
	}
	thief.close()
	r.use()
}

// hang has leap-soc not run any more, so that it is killed.
func (r *life) hang() {
	t := r.t
	guest := r.guest("vm3", vfiousertest.MemoryOptions{}, false)
	hung := r.daemons["soc"]
	if err := hung.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The signal takes its time, and a poller could answer meanwhile.
	r.wait("it stands still", func() bool { return stopped(hung.cmd.Process.Pid) }, hung)
	guest.close()
	r.gone("soc", -1)
	r.start("leap-soc", "soc")
	r.enabled()
	r.use()
}

// end takes everything apart.
func (r *life) end() {
	t := r.t
	for _, name := range []string{"wpt", "soc"} {
		if err := r.daemons[name].cmd.Process.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{
		"leap-qmap unmap vm3", "leap-wpt port remove vm3", "leap-soc volume delete f1",
		"leap-rdma unlisten " + r.host, "leap-soc namespace remove s1 1", "leap-soc volume delete h1 --data",
	} {
		r.run(line)
	}
	r.ends("far", unix.SIGQUIT, 2) // last words, of all goroutines
	r.ends("soc", unix.SIGTERM, 0)
	broker := r.daemons["wpt"]
	if err := broker.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.wait("the first TERM is refused", func() bool { return strings.Contains(broker.read(), "not ending: ") }, broker)
	r.vm1.close()
	r.vm2.close()
	r.ends("wpt", unix.SIGTERM, 0)
	logs, err := filepath.Glob(filepath.Join(r.dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range logs {
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("SIGSYS")) || bytes.Contains(b, []byte("bad system call")) {
			t.Errorf("%s: a system call that is not allowed", filepath.Base(log))
		}
	}
}
