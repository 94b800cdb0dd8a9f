// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/vfiouser"
)

// handoverVersion is the version of the handover document. A program takes over
// from one that writes the same.
const handoverVersion = 1

// handoverEnv names the descriptor of the document in the environment of a
// program that is to take over.
const handoverEnv = "LEAP_HANDOVER"

// handover is all that a leap-wpt leaves to the program that replaces it in
// place, in the same process: what it knows, and the numbers of its open files.
// The connections of clients are at a message boundary; the links of runtimes
// have ended. Whoever has it owns the files.
type handover struct {
	Version  int               `json:"version"`
	From     string            `json:"from"`  // version of the program
	Began    time.Time         `json:"began"` // since then guests have to wait
	PID      int               `json:"pid"`   // files: the pid file, the sockets
	Links    int               `json:"links"`
	Control  int               `json:"control"`
	Epoch    uint64            `json:"epoch"`
	LastID   uint32            `json:"last_id"`
	Runtimes []runtimeHandover `json:"runtimes"`
	Kept     []keptHandover    `json:"kept"`
	Ports    []portHandover    `json:"ports"`
	Failed   []record          `json:"failed"`
}

// runtimeHandover is a runtime that is not gone yet.
type runtimeHandover struct {
	Name  string    `json:"name"`
	PID   int       `json:"pid"`
	Epoch uint64    `json:"epoch"`
	Since time.Time `json:"since"`
	Fence int       `json:"fence"`
}

type keptHandover struct {
	Runtime string `json:"runtime"`
	Name    string `json:"name"`
	File    int    `json:"file"`
}

type portHandover struct {
	ID            uint32           `json:"id"`
	Record        record           `json:"record"`
	Registers     int              `json:"registers"`
	Doorbells     int              `json:"doorbells"`
	State         int              `json:"state"`
	Kick          int              `json:"kick"`
	Listener      int              `json:"listener"`
	Config        []byte           `json:"config"`
	FunctionReset bool             `json:"function_reset"`
	Holder        uint64           `json:"holder"` // epoch; 0: none
	Subsystem     string           `json:"subsystem"`
	Poll          string           `json:"poll"` // with Subsystem, what the holder was told
	Shown         string           `json:"shown"`
	Since         time.Time        `json:"since"`
	Regions       []regionHandover `json:"regions"`
	Vectors       []vectorHandover `json:"vectors"`
	MSIX          bool             `json:"msix"`
	Mask          bool             `json:"mask"`
	Client        *clientHandover  `json:"client"`
}

type regionHandover struct {
	Addr   uint64 `json:"addr"`
	Size   uint64 `json:"size"`
	Offset uint64 `json:"offset"`
	Flags  uint32 `json:"flags"`
	File   int    `json:"file"` // noFD: the client does not share it
}

type vectorHandover struct {
	Index  vfiouser.IRQ `json:"index"`
	Vector uint32       `json:"vector"`
	File   int          `json:"file"`
}

type clientHandover struct {
	Socket     int             `json:"socket"`
	Negotiated bool            `json:"negotiated"`
	Limit      uint64          `json:"limit"` // of a piece
	Unread     []byte          `json:"unread"`
	Files      []fileHandover  `json:"files"` // that came with Unread
	NextID     uint16          `json:"next_id"`
	Pieces     []pieceHandover `json:"pieces"`
}

type fileHandover struct {
	At   int `json:"at"`
	File int `json:"file"`
}

type pieceHandover struct {
	ID      uint16           `json:"id"`
	Command vfiouser.Command `json:"command"`
	Stale   bool             `json:"stale"`
}

// files returns all open files.
func (h *handover) files() []int {
	all := []int{h.PID, h.Links, h.Control}
	for _, r := range h.Runtimes {
		all = append(all, r.Fence)
	}
	for _, k := range h.Kept {
		all = append(all, k.File)
	}
	for i := range h.Ports {
		p := &h.Ports[i]
		all = append(all, p.Registers, p.Doorbells, p.State, p.Kick, p.Listener)
		for _, r := range p.Regions {
			if r.File != noFD {
				all = append(all, r.File)
			}
		}
		for _, v := range p.Vectors {
			all = append(all, v.File)
		}
		if p.Client != nil {
			all = append(all, p.Client.Socket)
			for _, f := range p.Client.Files {
				all = append(all, f.File)
			}
		}
	}
	return all
}

// setInherited has a program that is executed get the files, or not.
func setInherited(files []int, inherited bool) error {
	flags := unix.FD_CLOEXEC
	if inherited {
		flags = 0
	}
	for _, fd := range files {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags); err != nil {
			return fmt.Errorf("file %d: %w", fd, err)
		}
	}
	return nil
}

// exec replaces this program by the one in path, with the same arguments. It
// returns only if that cannot be done.
func (h *handover) exec(path string) error {
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("describing what is handed over: %w", err)
	}
	fd, err := unix.MemfdCreate("leapio-handover", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("describing what is handed over: %w", err)
	}
	document := os.NewFile(uintptr(fd), "handover")
	defer document.Close()
	if _, err := document.WriteAt(b, 0); err != nil {
		return fmt.Errorf("describing what is handed over: %w", err)
	}
	files := append(h.files(), fd)
	err = setInherited(files, true)
	if err == nil {
		err = unix.Exec(path, os.Args, append(os.Environ(), handoverEnv+"="+strconv.Itoa(fd)))
		err = &os.PathError{Op: "execute", Path: path, Err: err}
	}
	return errors.Join(err, setInherited(files, false))
}

// inherited returns what the program before this one has left, nil if there was
// none.
func inherited() (*handover, error) {
	text := os.Getenv(handoverEnv)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(handoverEnv); err != nil { // it is not for our children
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 0 {
		return nil, fault.Errorf(fault.Usage, "", "", "%s=%s: not the number of a file", handoverEnv, text)
	}
	document := os.NewFile(uintptr(fd), "handover")
	defer document.Close()
	b, err := io.ReadAll(io.NewSectionReader(document, 0, 1<<30))
	if err != nil {
		return nil, fmt.Errorf("reading what was handed over: %w", err)
	}
	return parseHandover(b)
}

// parseHandover reads the document.
func parseHandover(b []byte) (*handover, error) {
	h := new(handover)
	if err := json.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("reading what was handed over: %w", err)
	}
	if h.Version != handoverVersion {
		return nil, fault.Errorf(fault.Unsupported, "", "", "the program before hands over in version %d, and this build knows %d", h.Version, handoverVersion)
	}
	return h, setInherited(h.files(), false)
}
