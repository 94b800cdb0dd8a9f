// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build race

package soak_test

const raceDetector = true
