// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package vfiouser

// FeatureFlags is the flags word of a DEVICE_FEATURE request: the feature in
// the low 16 bits and what to do with it.
type FeatureFlags uint32

// Flags and features of a DEVICE_FEATURE request (VFIO_DEVICE_FEATURE_*).
const (
	FeatureMask  FeatureFlags = 0xffff
	FeatureGet   FeatureFlags = 1 << 16
	FeatureSet   FeatureFlags = 1 << 17
	FeatureProbe FeatureFlags = 1 << 18

	FeatureMigration        FeatureFlags = 1
	FeatureMigDeviceState   FeatureFlags = 2
	FeatureDMALoggingStart  FeatureFlags = 6
	FeatureDMALoggingStop   FeatureFlags = 7
	FeatureDMALoggingReport FeatureFlags = 8
)

// String prints the feature and the actions.
func (f FeatureFlags) String() string {
	names := []string{1: "migration", 2: "mig_device_state", 6: "dma_logging_start", 7: "dma_logging_stop", 8: "dma_logging_report"}
	s := indexName(uint32(f&FeatureMask), "feature ", names)
	if actions := uint32(f &^ FeatureMask); actions != 0 {
		s += "|" + flagString(actions>>16, "get", "set", "probe")
	}
	return s
}

// DeviceFeatureSize is the length of a DeviceFeature without data in bytes.
const DeviceFeatureSize = 8

// DeviceFeature begins DEVICE_FEATURE and its reply; the data of the feature
// follows.
type DeviceFeature struct {
	ArgSize uint32 // request: greatest reply taken; reply: its full size. Bytes
	Flags   FeatureFlags
}

// ParseDeviceFeature reads a DEVICE_FEATURE request or reply. It does not look
// at the data behind it.
func ParseDeviceFeature(b []byte) (DeviceFeature, error) {
	if len(b) < DeviceFeatureSize {
		return DeviceFeature{}, shortError("DEVICE_FEATURE", len(b), DeviceFeatureSize)
	}
	m := DeviceFeature{ArgSize: le.Uint32(b[0:]), Flags: FeatureFlags(le.Uint32(b[4:]))}
	return m, checkArgSize("DEVICE_FEATURE", m.ArgSize, DeviceFeatureSize)
}

// Put writes the structure to the first DeviceFeatureSize bytes of b.
func (m *DeviceFeature) Put(b []byte) {
	_ = b[DeviceFeatureSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], uint32(m.Flags))
}

// MigDataSize is the length of a MigData without data in bytes.
const MigDataSize = 8

// MigData begins MIG_DATA_READ, its reply, and MIG_DATA_WRITE; the data follows
// in the last two.
type MigData struct {
	ArgSize uint32 // greatest reply taken, in bytes
	Size    uint32 // of the data in bytes
}

// ParseMigData reads a MIG_DATA_READ or MIG_DATA_WRITE request or reply. It
// does not look at the data behind it.
func ParseMigData(b []byte) (MigData, error) {
	if len(b) < MigDataSize {
		return MigData{}, shortError("migration data", len(b), MigDataSize)
	}
	return MigData{ArgSize: le.Uint32(b[0:]), Size: le.Uint32(b[4:])}, nil
}

// Put writes the structure to the first MigDataSize bytes of b.
func (m *MigData) Put(b []byte) {
	_ = b[MigDataSize-1]
	le.PutUint32(b[0:], m.ArgSize)
	le.PutUint32(b[4:], m.Size)
}
