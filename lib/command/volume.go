// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package command

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/leapio/leapio/lib/api"
	"github.com/leapio/leapio/lib/cli"
	"github.com/leapio/leapio/lib/fault"
)

// MakeVolume makes a volume and prints its name.
func MakeVolume(ctx context.Context, call *cli.Call, runtime string, spec api.VolumeSpec) error {
	client, err := Runtime(call, runtime)
	if err != nil {
		return err
	}
	made, err := CreateVolume(ctx, client, spec)
	if err != nil {
		return About(call, spec.Name, err)
	}
	return cli.Made(call, made.Name)
}

// ParseVolume reads the words of volume create: a name, a kind, and key=value
// pairs, of which on= has the names of volumes with commas between.
func ParseVolume(words []string) (api.VolumeSpec, error) {
	spec := api.VolumeSpec{Name: words[0], Kind: words[1], Options: make(api.Options)}
	for _, word := range words[2:] {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return spec, fault.Errorf(fault.Usage, "", "", "bad word %q: it is not KEY=VALUE", word)
		}
		_, again := spec.Options[key]
		switch {
		case again, key == "on" && spec.On != nil:
			return spec, fault.Errorf(fault.Usage, "", "", "%s= is given twice", key)
		case key == "on":
			spec.On = strings.Split(value, ",")
		default:
			spec.Options[key] = value
		}
	}
	return spec, spec.Check()
}

// CreateVolume makes a volume. Paths among the options are relative to the
// folder of the caller.
func CreateVolume(ctx context.Context, client *api.Client, spec api.VolumeSpec) (api.Volume, error) {
	var (
		kind api.KindInfo
		made api.Volume
	)
	err := client.Get(ctx, api.Path("kinds", spec.Kind), &kind)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return made, err // what a missing kind means is for the call below to say
	}
	for _, key := range kind.Keys {
		value := spec.Options[key.Name]
		if value == "" || !strings.EqualFold(key.Type, "path") {
			continue
		}
		if spec.Options[key.Name], err = filepath.Abs(value); err != nil {
			return made, err
		}
	}
	return made, client.Post(ctx, api.Path("volumes"), spec, &made)
}
