// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package wpt

import "github.com/leapio/leapio/lib/api"

// bounds returns what this broker bounds.
func (b *Broker) bounds() (api.List[api.Limit], error) {
	common, err := api.CommonLimits(b.paths.StateFile("wpt"))
	if err != nil {
		return nil, err
	}
	all := append(api.List[api.Limit]{
		api.CountLimit("ports", api.PerDaemon, "--ports", b.maxPorts).Using(len(b.allPorts())),
		api.CountLimit("port-regions", "port", "", maxRegions),
		api.BytesLimit("port-message", "message", "", maxData),
		api.CountLimit("links", api.PerDaemon, "", cap(b.linkSlots)).Using(len(b.linkSlots)),
		api.CountLimit("kept-files", "runtime", "", maxKept),
	}, common...)
	for i := range all {
		all[i].Daemon = daemon
	}
	return all, nil
}
