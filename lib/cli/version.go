// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package cli

import "runtime/debug"

// version is set by the Makefile: -ldflags "-X <this package>.version=...".
var version string

// Version is the version of this build: what the Makefile set, else what the go
// command recorded, else "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}
