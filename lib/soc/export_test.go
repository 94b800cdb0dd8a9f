// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package soc

import "github.com/leapio/leapio/lib/volume"

// AddKind makes a kind of volume known, for a test. No runtime runs yet.
func AddKind(k volume.Kind) { kinds[k.Name] = k }
