// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package disktest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
)

// What becomes of a step that was not synced.
const (
	lost   = iota
	done   // as if it had been synced
	inPart // of a write: some of its sectors, at random, and the size
)

// parts is how many times a write is done in part.
const parts = 6

// exhaustive is up to how many ways to lose what was not synced are all tried;
// beyond, some are: with nothing lost, with all of it, and at random.
const (
	exhaustive = 1024
	some       = 64
)

// Cut calls check for what the disk can hold after each step, from Mark number from
// on: in the place of Root, with the number of the last Mark before. It ends with
// the first that check finds fault with, and returns how many there were. What is
// recorded stays aside meanwhile.
func (r *Recorder) Cut(from int, check func(mark int) error) (states int, err error) {
	aside := r.Root + ".aside"
	if err := os.Rename(r.Root, aside); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Rename(aside, r.Root)) }()
	rng := rand.New(rand.NewPCG(1, uint64(len(r.steps))))
	seen := make(map[string]bool)
	for cut := r.marks[from]; cut <= len(r.steps); cut++ {
		safe, open := r.at(cut)
		mark := from
		for mark+1 < len(r.marks) && r.marks[mark+1] <= cut {
			mark++
		}
		ways := 1
		for _, s := range open {
			if ways *= s.choices(); ways > exhaustive {
				break
			}
		}
		n := ways
		if ways > exhaustive {
			n = some
		}
		for way := range n {
			fate := make([]int, len(open))
			rest := way
			for i, s := range open {
				switch {
				case ways <= exhaustive:
					fate[i], rest = rest%s.choices(), rest/s.choices()
				case way < 2:
					fate[i] = way // all lost, all done
				default:
					fate[i] = rng.IntN(s.choices())
				}
			}
			held := safe.clone()
			for i, s := range open {
				held.apply(s, fate[i], rng)
			}
			key := fmt.Sprintf("%d %x", mark, *held)
			if seen[key] {
				continue
			}
			seen[key] = true
			states++
			if err := held.check(r.Root, func() error { return check(mark) }); err != nil {
				var lines []string
				for i, s := range r.steps[r.marks[from]:cut] {
					lines = append(lines, fmt.Sprintf("%3d %s", i, s))
				}
				for i, s := range open {
					lines = append(lines, fmt.Sprintf("not synced: %s: %s", s, [...]string{"lost", "done", "in part"}[min(fate[i], inPart)]))
				}
				return states, fmt.Errorf("%w\nwith the power cut after:\n%s", err, strings.Join(lines, "\n"))
			}
		}
	}
	return states, nil
}

// check makes the tree at root and has it checked.
func (t *tree) check(root string, check func() error) error {
	dir, err := os.MkdirTemp(tempDir(), "leap-cut-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := t.make(dir, 0); err != nil {
		return err
	}
	if err := os.Symlink(dir, root); err != nil {
		return err
	}
	defer os.Remove(root)
	return check()
}

// tempDir is in memory where it can: what is synced there costs nothing.
func tempDir() string {
	const shm = "/dev/shm"
	if f, err := os.CreateTemp(shm, "leap-cut-"); err == nil {
		f.Close()
		os.Remove(f.Name())
		return shm
	}
	return ""
}

// choices is how many ways there are to lose a step, or not.
func (s step) choices() int {
	if s.kind == write && len(s.data) > 0 {
		return inPart + parts
	}
	return inPart
}

// written reports whether a sector of a write is there that was done in part.
// Of two, the number of the part has a bit for each.
func (s step) written(i, part int, rng *rand.Rand) bool {
	if len(s.data) <= 2*sector {
		return part>>i&1 != 0
	}
	return rng.IntN(2) == 0
}

// concerns returns the inode whose sync makes the step safe.
func (s step) concerns() int {
	if s.kind == link || s.kind == unlink || s.kind == rename {
		return s.in
	}
	return s.inode
}

// at returns what is safe after so many steps, and what was not synced by then.
func (r *Recorder) at(cut int) (safe *tree, open []step) {
	safe = newTree()
	for _, s := range r.steps[:cut] {
		if s.kind != sync {
			open = append(open, s)
			continue
		}
		var left []step
		for _, o := range open {
			if o.concerns() == s.inode {
				safe.apply(o, done, nil)
			} else {
				left = append(left, o)
			}
		}
		open = left
	}
	return safe, open
}

// apply has the tree hold what became of a step.
func (t *tree) apply(s step, fate int, rng *rand.Rand) {
	if s.folder && t.folders[s.inode] == nil {
		t.folders[s.inode] = make(map[string]int)
	}
	if fate == lost {
		return
	}
	names := t.folders[s.in]
	if names == nil {
		names = make(map[string]int)
		t.folders[s.in] = names
	}
	switch s.kind {
	case link:
		names[s.name] = s.inode
	case unlink:
		delete(names, s.name)
	case rename:
		if names[s.name] == s.inode {
			delete(names, s.name)
		}
		names[s.to] = s.inode
	case truncate:
		data := make([]byte, s.off)
		copy(data, t.files[s.inode])
		t.files[s.inode] = data
	case write:
		end := int(s.off) + len(s.data)
		data := make([]byte, max(end, len(t.files[s.inode])))
		copy(data, t.files[s.inode])
		for i := 0; i < len(s.data); i += sector {
			if fate == done || s.written(i/sector, fate-inPart, rng) {
				copy(data[int(s.off)+i:], s.data[i:min(i+sector, len(s.data))])
			}
		}
		t.files[s.inode] = data
	}
}
