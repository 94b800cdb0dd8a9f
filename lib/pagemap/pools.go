// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package pagemap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Pool is the kernel's huge pages of one size, of the whole machine or of one
// NUMA node. Counts are pages.
type Pool struct {
	PageSize uint64 // bytes
	Node     int    // -1: the whole machine
	Total    uint64 // nr_hugepages, surplus ones included
	Free     uint64
	Surplus  uint64 // beyond what was reserved
	Promised uint64 // of Free: mappings have them already (resv_hugepages); whole machine only
}

// Sysfs is where the kernel keeps its pools.
const Sysfs = "/sys"

const poolPrefix = "hugepages-"

// machinePools is the folder of pools of the whole machine.
func machinePools(sys string) string { return filepath.Join(sys, "kernel/mm/hugepages") }

// nodePools is the folder of pools of one node.
func nodePools(sys string, node int) string {
	return filepath.Join(sys, "devices/system/node", "node"+strconv.Itoa(node), "hugepages")
}

// Pools lists the pools below sys, those of the whole machine first, then those
// of each node, by size.
func Pools(sys string) ([]Pool, error) {
	all, err := poolsIn(machinePools(sys), -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this kernel has no huge pages: %w", err)
	}
	if err != nil {
		return nil, err
	}
	nodes, err := filepath.Glob(filepath.Join(sys, "devices/system/node/node[0-9]*"))
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, dir := range nodes {
		if id, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "node")); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		pools, err := poolsIn(nodePools(sys, id), id)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, pools...)
	}
	return all, nil
}

// poolsIn reads a folder of pools.
func poolsIn(dir string, node int) ([]Pool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var pools []Pool
	for _, e := range entries {
		size, ok := poolSize(e.Name())
		if !ok {
			continue
		}
		p := Pool{PageSize: size, Node: node}
		files := map[string]*uint64{"nr_hugepages": &p.Total, "free_hugepages": &p.Free, "surplus_hugepages": &p.Surplus}
		if node < 0 {
			files["resv_hugepages"] = &p.Promised
		}
		for name, n := range files {
			if *n, err = readNumber(filepath.Join(dir, e.Name(), name)); err != nil {
				return nil, err
			}
		}
		pools = append(pools, p)
	}
	slices.SortFunc(pools, func(a, b Pool) int { return int(a.PageSize>>10) - int(b.PageSize>>10) })
	return pools, nil
}

// poolSize reads the page size from the name of a pool's folder.
func poolSize(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, poolPrefix)
	if !ok {
		return 0, false
	}
	kib, err := strconv.ParseUint(strings.TrimSuffix(digits, "kB"), 10, 64-10)
	return kib << 10, err == nil && strings.HasSuffix(digits, "kB") && kib != 0
}

// Reserve has the kernel keep pages huge pages of a size, in all or on one
// node (-1: where it likes), and returns how many it keeps now: fewer than asked
// for when it finds no more contiguous memory. Pages in use are not given back.
func Reserve(sys string, size uint64, node int, pages uint64) (uint64, error) {
	dir := machinePools(sys)
	if node >= 0 {
		dir = nodePools(sys, node)
	}
	path := filepath.Join(dir, fmt.Sprintf("%s%dkB", poolPrefix, size>>10), "nr_hugepages")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	_, err = f.WriteString(strconv.FormatUint(pages, 10))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return readNumber(path)
}

// readNumber reads a file that holds one decimal number.
func readNumber(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
