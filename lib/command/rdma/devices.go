// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package rdma

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
)

// Kinds of devices.
const (
	kindNet  = "net"  // a network interface
	kindRDMA = "rdma" // a port of an RDMA device
)

// device is what listeners can be opened on.
type device struct {
	Name      string           `json:"name"` // of an RDMA device with its port, mlx5_0/1
	Kind      string           `json:"kind"`
	State     string           `json:"state"` // in the kernel's words: up, down, active, ...
	MTU       int              `json:"mtu"`   // bytes; 0: not known
	Speed     int64            `json:"speed"` // bits in a second; 0: not known
	Addresses api.List[string] `json:"addresses"`
	Detail    string           `json:"detail"` // the link layer of an RDMA device
}

var deviceColumns = []cli.Column[device]{
	{Name: "DEVICE", Value: func(d device) any { return d.Name }},
	{Name: "KIND", Value: func(d device) any { return d.Kind }},
	{Name: "STATE", Value: func(d device) any { return d.State }},
	{Name: "MTU", Value: func(d device) any { return known(int64(d.MTU)) }},
	{Name: "SPEED", Value: func(d device) any { return known(d.Speed) }},
	{Name: "ADDRESSES", Value: func(d device) any { return []string(d.Addresses) }},
	{Name: "DETAIL", Value: func(d device) any { return d.Detail }},
}

// known is a number that is 0 where it is not known.
func known(n int64) any {
	if n == 0 {
		return nil
	}
	return n
}

// sysfs is where the kernel tells of devices.
const sysfs = "/sys"

func devices() *cli.Command {
	return &cli.Command{
		Name:  "devices",
		Usage: "list network interfaces and RDMA devices",
		Run: func(ctx context.Context, call *cli.Call) error {
			all, err := interfaces(sysfs)
			if err != nil {
				return err
			}
			rdma, missing := rdmaDevices(sysfs)
			if err := cli.List(call, deviceColumns, append(all, rdma...)); err != nil {
				return err
			}
			if missing != nil {
				_, err = fmt.Fprintf(call.Stderr, "leap-rdma: no RDMA devices: %v\n", missing)
			}
			return err
		},
	}
}

// interfaces are the network interfaces.
func interfaces(sys string) ([]device, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []device
	for _, i := range list {
		dir := filepath.Join(sys, "class/net", i.Name)
		d := device{Name: i.Name, Kind: kindNet, State: word(filepath.Join(dir, "operstate")), MTU: i.MTU}
		if d.State == "" || d.State == "unknown" { // loopback, for instance, never says
			d.State = "down"
			if i.Flags&net.FlagUp != 0 {
				d.State = "up"
			}
		}
		// Megabits; virtual interfaces say -1, and those without a link fail.
		if speed, err := strconv.ParseInt(word(filepath.Join(dir, "speed")), 10, 32); err == nil && speed > 0 {
			d.Speed = speed * 1e6
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			d.Addresses = append(d.Addresses, a.String())
		}
		all = append(all, d)
	}
	return all, nil
}

// rdmaDevices are the ports of RDMA devices; if there are none, the error says
// why.
func rdmaDevices(sys string) ([]device, error) {
	class := filepath.Join(sys, "class/infiniband")
	if _, err := os.Stat(class); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("the kernel has no RDMA support, or its module ib_core is not loaded")
	}
	ports, err := filepath.Glob(filepath.Join(class, "*/ports/*"))
	if err != nil {
		return nil, err
	}
	if len(ports) == 0 {
		return nil, errors.New("the kernel supports RDMA, but has no device")
	}
	var all []device
	for _, dir := range ports {
		d := device{
			Name: filepath.Base(filepath.Dir(filepath.Dir(dir))) + "/" + filepath.Base(dir), Kind: kindRDMA,
			Detail: word(filepath.Join(dir, "link_layer")),
		}
		// "4: ACTIVE", "100 Gb/sec (4X EDR)"
		_, state, _ := strings.Cut(word(filepath.Join(dir, "state")), ": ")
		d.State = strings.ToLower(state)
		rate, unit, _ := strings.Cut(word(filepath.Join(dir, "rate")), " ")
		if gigabits, err := strconv.ParseFloat(rate, 64); err == nil && strings.HasPrefix(unit, "Gb/sec") {
			d.Speed = int64(gigabits * 1e9)
		}
		all = append(all, d)
	}
	return all, nil
}

// word is what a file of sysfs says; empty if it says nothing.
func word(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
