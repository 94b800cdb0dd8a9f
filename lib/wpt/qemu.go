// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/fault"
	"github.com/leapio/leapio/lib/units"
)

// memoryID names the guest's memory among QEMU's objects.
const memoryID = "leapmem"

// QEMUArgs returns what a machine needs to have the drives of ports: its memory
// as a file that can be shared, once, and a device for each port.
//
// As arguments of QEMU (10.1 or newer) it is one line of words without blanks,
// quotes that sh would take, or glob characters, so that an unquoted $(...)
// works; the double quotes of the JSON are QEMU's. -machine adds to a -M or
// -machine of the user's, before or after. mem is the same size as in the
// user's -m, in whole MiB.
//
// For libvirt it is the elements to put into <domain>: mem may then be 0.
// Errors are usage faults.
func QEMUArgs(ports []api.Port, mem units.Size, libvirt bool) (string, error) {
	if len(ports) == 0 {
		return "", fault.Errorf(fault.Usage, "", "", "no port given")
	}
	if mem < 0 || mem%units.MiB != 0 || mem == 0 && !libvirt {
		return "", fault.Errorf(fault.Usage, "", "", "bad memory size %v: it is not a number of whole MiB", mem).
			Hint("give the size of the machine's memory, the one of -m")
	}
	seen := make(map[string]bool)
	var devices []string
	for _, p := range ports {
		if seen[p.Name] {
			return "", fault.Errorf(fault.Usage, "", "", "port %s given twice", p.Name)
		}
		seen[p.Name] = true
		device, err := deviceArgument(p.Name, p.Socket)
		if err != nil {
			return "", err
		}
		devices = append(devices, device)
	}
	if libvirt {
		return libvirtXML(devices, mem)
	}
	words := []string{
		"-object", fmt.Sprintf("memory-backend-memfd,id=%s,size=%d,share=on", memoryID, int64(mem)),
		"-machine", "memory-backend=" + memoryID,
	}
	for _, d := range devices {
		words = append(words, "-device", d)
	}
	return strings.Join(words, " "), nil
}

// deviceArgument returns the argument of -device for a port. The JSON form is
// the only one that takes a socket.
func deviceArgument(name, socket string) (string, error) {
	unsafe := strings.IndexFunc(socket, func(c rune) bool {
		return c <= ' ' || c == 0x7f || strings.ContainsRune(`*?[]\"'`, c)
	})
	if unsafe >= 0 {
		return "", fault.Errorf(fault.Usage, "", "", "socket path %q has characters that a shell takes apart", socket)
	}
	type address struct {
		Type string `json:"type"`
		Path string `json:"path"`
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(struct {
		Driver string  `json:"driver"`
		ID     string  `json:"id"`
		Socket address `json:"socket"`
	}{"vfio-user-pci", "leap-" + name, address{"unix", socket}})
	return strings.TrimSuffix(b.String(), "\n"), err
}

// libvirtXML returns the elements for a libvirt domain, which has no element of
// its own for vfio-user.
func libvirtXML(devices []string, mem units.Size) (string, error) {
	var b strings.Builder
	if mem > 0 {
		fmt.Fprintf(&b, "<memory unit='bytes'>%d</memory>\n", int64(mem))
	}
	b.WriteString("<memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n")
	b.WriteString("<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n")
	for _, d := range devices {
		b.WriteString("  <qemu:arg value='-device'/>\n  <qemu:arg value='")
		if err := xml.EscapeText(&b, []byte(d)); err != nil {
			return "", err
		}
		b.WriteString("'/>\n")
	}
	b.WriteString("</qemu:commandline>")
	return b.String(), nil
}
