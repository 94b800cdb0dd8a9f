// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import (
	"context"
	"slices"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/command"
	"github.com/leapio/leapio/lib/units"
)

// volumeColumns are those of volume list; volume show has more at the end.
var volumeColumns = []cli.Column[api.Volume]{
	{Name: "VOLUME", Value: func(v api.Volume) any { return v.Name }},
	{Name: "KIND", Value: func(v api.Volume) any { return v.Kind }},
	{Name: "SIZE", Value: func(v api.Volume) any { return v.Size }},
	{Name: "BLOCK", Value: func(v api.Volume) any { return int64(v.Block) }},
	{Name: "STATE", Value: func(v api.Volume) any { return v.State }},
	{Name: "USED-BY", Value: func(v api.Volume) any { return []string(v.UsedBy) }},
}

var volumeDetails = append(volumeColumns[:len(volumeColumns):len(volumeColumns)], []cli.Column[api.Volume]{
	{Name: "PATH", Value: func(v api.Volume) any { return v.Path }},
	{Name: "ON", Value: func(v api.Volume) any { return []string(v.On) }},
	{Name: "UUID", Value: func(v api.Volume) any { return v.UUID }},
	{Name: "OPTIONS", Value: options},
	{Name: "ERROR", Value: func(v api.Volume) any { return v.Error }},
}...)

// options are the key=value words of a volume, as volume create takes them.
func options(v api.Volume) any {
	var words []string
	for key, value := range v.Options {
		words = append(words, key+"="+value)
	}
	slices.Sort(words)
	return words
}

func volumeCreate() *cli.Command {
	var (
		runtime, uuid string
		existOK       bool
	)
	return &cli.Command{
		Name:  "create",
		Usage: "make a volume",
		Help:  "volume describe lists the kinds and their keys.",
		Args:  "NAME KIND [KEY=VALUE...]",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "uuid", Arg: "UUID", Usage: "its UUID, which hosts see; without it, a new one", Value: cli.String(&uuid)},
			{Name: "exist-ok", Usage: "a volume that is as asked for already is no error", Value: cli.Bool(&existOK)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			spec, err := command.ParseVolume(call.Args)
			if err != nil {
				return err
			}
			spec.UUID, spec.ExistOK = uuid, existOK
			if err := spec.Check(); err != nil {
				return err
			}
			return command.MakeVolume(ctx, call, runtime, spec)
		},
	}
}

func volumeList() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "list",
		Usage: "list the volumes",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var volumes []api.Volume
			if err := client.Get(ctx, api.Path("volumes"), &volumes); err != nil {
				return err
			}
			return cli.List(call, volumeColumns, volumes)
		},
	}
}

func volumeShow() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "show",
		Usage: "show one volume",
		Args:  "VOLUME",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			name := call.Arg(0)
			if err := command.CheckNames("volume", name); err != nil {
				return err
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			var v api.Volume
			if err := client.Get(ctx, api.Path("volumes", name), &v); err != nil {
				return command.About(call, name, err)
			}
			return cli.Show(call, volumeDetails, v)
		},
	}
}

func volumeResize() *cli.Command {
	var (
		runtime string
		in      api.VolumeResize
	)
	return &cli.Command{
		Name:  "resize",
		Usage: "give a volume another size, also while it is in use",
		Help:  "SIZE is the new size, or +SIZE what is added. Hosts see it at once.",
		Args:  "VOLUME SIZE",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "shrink", Usage: "it may become smaller: what is beyond the new end is lost", Value: cli.Bool(&in.Shrink)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			name := call.Arg(0)
			if err := command.CheckNames("volume", name); err != nil {
				return err
			}
			var size string
			var err error
			size, in.Add = strings.CutPrefix(call.Arg(1), "+")
			if in.Size, err = units.ParseSize(size); err != nil {
				return err
			}
			if err := in.Check(); err != nil {
				return err
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			return command.About(call, name, client.Put(ctx, api.Path("volumes", name), in, nil))
		},
	}
}

func volumeDelete() *cli.Command {
	var (
		runtime string
		in      api.VolumeDelete
	)
	return &cli.Command{
		Name:  "delete",
		Usage: "delete volumes",
		Args:  "VOLUME...",
		Flags: []cli.Flag{
			command.RuntimeFlag(&runtime),
			{Name: "data", Usage: "and their data files, if leap-soc made them", Value: cli.Bool(&in.Data)},
		},
		Run: func(ctx context.Context, call *cli.Call) error {
			if err := command.CheckNames("volume", call.Args...); err != nil {
				return err
			}
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			return call.Each(ctx, call.Args, func(name string) error {
				return client.Delete(ctx, api.Path("volumes", name), in, nil)
			})
		},
	}
}

var kindColumns = []cli.Column[api.KindInfo]{
	{Name: "KIND", Value: func(k api.KindInfo) any { return k.Kind }},
	{Name: "KEYS", Value: keyNames},
	{Name: "SUMMARY", Value: func(k api.KindInfo) any { return k.Summary }},
}

var keyColumns = []cli.Column[api.Key]{
	{Name: "KEY", Value: func(k api.Key) any { return k.Name }},
	{Name: "VALUE", Value: func(k api.Key) any { return k.Type }},
	{Name: "DEFAULT", Value: func(k api.Key) any { return k.Default }},
	{Name: "SUMMARY", Value: func(k api.Key) any { return k.Summary }},
}

// keyNames are the keys of a kind.
func keyNames(k api.KindInfo) any {
	var names []string
	for _, key := range k.Keys {
		names = append(names, key.Name+"=")
	}
	return names
}

func volumeDescribe() *cli.Command {
	var runtime string
	return &cli.Command{
		Name:  "describe",
		Usage: "list the kinds of volumes, or the keys of one kind",
		Args:  "[KIND]",
		Flags: []cli.Flag{command.RuntimeFlag(&runtime)},
		Run: func(ctx context.Context, call *cli.Call) error {
			client, err := command.Runtime(call, runtime)
			if err != nil {
				return err
			}
			name := call.Arg(0)
			if name == "" {
				var kinds []api.KindInfo
				if err := client.Get(ctx, api.Path("kinds"), &kinds); err != nil {
					return err
				}
				return cli.List(call, kindColumns, kinds)
			}
			if err := command.CheckNames("kind", name); err != nil {
				return err
			}
			var kind api.KindInfo
			if err := client.Get(ctx, api.Path("kinds", name), &kind); err != nil {
				return command.About(call, name, err)
			}
			if call.Format == cli.JSON {
				return cli.Show(call, kindColumns, kind)
			}
			return cli.List(call, keyColumns, kind.Keys)
		},
	}
}
