// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build race

package target

const raceDetector = true
