// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package bench_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// spdk is the peer: nvmf_tgt of a built tree of SPDK.
type spdk struct {
	tree, dir string
	file      string // of the file volume
	size      int    // of other volumes, in MiB
	memoryMiB int    // huge pages it is given
	side      *side
	port      string
	p         *process
}

const theirNQN = "nqn.2014-08.org.nvmexpress:uuid:1d5e7b52-07f8-4d0c-9d30-2f6d0e3f7c11"

// method is a line of the peer's configuration.
type method struct {
	Method string         `json:"method"`
	Params map[string]any `json:"params,omitempty"`
}

// config is what the peer is to serve.
func (s *spdk) config() ([]byte, error) {
	type m = map[string]any
	var bdev method
	blocks := s.size << 20 / block
	switch s.side.volume {
	case "null":
		bdev = method{"bdev_null_create", m{"name": "b0", "num_blocks": blocks, "block_size": block}}
	case "mem":
		bdev = method{"bdev_malloc_create", m{"name": "b0", "num_blocks": blocks, "block_size": block}}
	default:
		backend := s.side.backend
		if backend == "" {
			backend = "uring"
		}
		bdev = method{"bdev_" + backend + "_create", m{"name": "b0", "filename": s.file, "block_size": block}}
	}
	transport, listen := "VFIOUSER", m{"trtype": "VFIOUSER", "traddr": s.dir}
	if s.side.path == tcp {
		transport, listen = "TCP", m{"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": s.port}
	}
	type subsystem struct {
		Subsystem string   `json:"subsystem"`
		Config    []method `json:"config"`
	}
	return json.Marshal(m{"subsystems": []subsystem{
		{"bdev", []method{bdev, {Method: "bdev_wait_for_examine"}}},
		{"nvmf", []method{
			{"nvmf_create_transport", m{"trtype": transport}},
			{"nvmf_create_subsystem", m{"nqn": theirNQN, "allow_any_host": true, "serial_number": "1"}},
			{"nvmf_subsystem_add_ns", m{"nqn": theirNQN, "namespace": m{"bdev_name": "b0"}}},
			{"nvmf_subsystem_add_listener", m{"nqn": theirNQN, "listen_address": listen}},
		}},
	}})
}

func (s *spdk) start() (err error) {
	if s.port, err = freePort(); err != nil {
		return err
	}
	if err := s.launch(); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if s.listens() {
			return nil
		}
		if time.Now().After(deadline) || unix.Kill(s.p.Process.Pid, 0) != nil {
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("nvmf_tgt does not serve:\n%s", log)
		}
	}
}

// launch starts the peer.
func (s *spdk) launch() error {
	if err := errors.Join(os.RemoveAll(s.dir), os.MkdirAll(s.dir, 0o700)); err != nil {
		return err
	}
	b, err := s.config()
	if err != nil {
		return err
	}
	config := filepath.Join(s.dir, "config.json")
	if err := os.WriteFile(config, b, 0o600); err != nil {
		return err
	}
	s.p, err = launch(filepath.Join(s.dir, "log"), nil, filepath.Join(s.tree, "build/bin/nvmf_tgt"),
		"-m", "0x1", "-s", strconv.Itoa(s.memoryMiB), "-r", filepath.Join(s.dir, "rpc"), "-c", config)
	return err
}

// listens reports whether the port is there.
func (s *spdk) listens() bool {
	network, addr := "unix", filepath.Join(s.dir, "cntrl")
	if s.side.path == tcp {
		network, addr = "tcp", "127.0.0.1:"+s.port
	} else {
		_, err := os.Stat(addr) // a connection would be its only one
		return err == nil
	}
	c, err := net.Dial(network, addr)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

func (s *spdk) where() where {
	return where{dirs: []string{s.dir}, addr: "127.0.0.1:" + s.port, nqn: theirNQN}
}

func (s *spdk) counted() (c counters, err error) {
	if c.cpu, err = processors([]int{s.p.Process.Pid}); err != nil {
		return c, err
	}
	conn, err := net.DialTimeout("unix", filepath.Join(s.dir, "rpc"), 10*time.Second)
	if err != nil {
		return c, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return c, err
	}
	if _, err := conn.Write([]byte(`{"jsonrpc":"2.0","id":1,"method":"thread_get_stats"}`)); err != nil {
		return c, err
	}
	var answer struct {
		Result struct {
			TickRate float64 `json:"tick_rate"`
			Threads  []struct {
				Busy float64 `json:"busy"`
			} `json:"threads"`
		} `json:"result"`
	}
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return c, err
	}
	for _, t := range answer.Result.Threads {
		c.busy += time.Duration(t.Busy / answer.Result.TickRate * float64(time.Second))
	}
	return c, nil
}

func (s *spdk) memory() (float64, error) {
	rss, err := status(s.p.Process.Pid, "VmRSS")
	if err != nil {
		return 0, err
	}
	huge, err := status(s.p.Process.Pid, "HugetlbPages")
	if err != nil {
		return 0, err
	}
	if s.side.volume == "mem" {
		huge -= float64(s.size)
	}
	return rss + huge, nil
}

func (s *spdk) stop() error {
	err := s.p.end()
	s.p = nil
	return err
}

// perf is the line of arguments for the peer's client, spdk_nvme_perf.
func perf(tree string, s *side, w where, warm, during time.Duration) []string {
	at := fmt.Sprintf("trtype:VFIOUSER traddr:%s subnqn:%s", w.dirs[0], w.nqn)
	if s.path == tcp {
		host, port, _ := net.SplitHostPort(w.addr)
		at = fmt.Sprintf("trtype:TCP adrfam:IPv4 traddr:%s trsvcid:%s subnqn:%s hostnqn:nqn.2014-08.org.nvmexpress:uuid:5f0f7c1e-9d3b-4b43-8f0e-6a1c3a1d2b77", host, port, w.nqn)
	}
	args := []string{
		filepath.Join(tree, "build/bin/spdk_nvme_perf"), "-r", at, "-g", "-s", "256", "-c", "0x" + strconv.FormatUint(1<<atoi(clientCPU), 16), "-L",
		"-q", strconv.Itoa(s.depth), "-o", strconv.FormatInt(int64(s.size), 10), "-w", string(s.pattern),
		"-t", strconv.Itoa(int(during / time.Second)), "-a", strconv.Itoa(int(warm / time.Second)),
	}
	if s.digests {
		args = append(args, "-H", "-I")
	}
	return args
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err) // a constant of ours
	}
	return n
}

// perfBegins is in the line that spdk_nvme_perf prints when it begins.
const perfBegins = "Launching workers"

// parsePerf reads what spdk_nvme_perf prints.
func parsePerf(out string) (sample, error) {
	var s sample
	us := func(text string) time.Duration {
		v, err := strconv.ParseFloat(strings.TrimSuffix(text, "us"), 64)
		if err != nil {
			return 0
		}
		return time.Duration(v * float64(time.Microsecond))
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 6 && f[0] == "Total" && f[1] == ":":
			s.IOPS, _ = strconv.ParseFloat(f[2], 64)
			s.Mean = us(f[4])
		case len(f) == 3 && f[1] == ":":
			switch f[0] {
			case "50.00000%":
				s.P50 = us(f[2])
			case "99.00000%":
				s.P99 = us(f[2])
			case "99.90000%":
				s.P999 = us(f[2])
			}
		}
	}
	if s.IOPS == 0 || s.Mean == 0 || s.P50 == 0 || s.P999 == 0 {
		return s, fmt.Errorf("spdk_nvme_perf:\n%s", out)
	}
	return s, nil
}
