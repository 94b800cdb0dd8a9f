#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The LeapIO Authors
#
# A virtual machine with a drive, step by step: `make demo` builds the commands
# and runs this. The lines that begin with $ are what an admin types; the rest
# makes them work without root and beside whatever else runs on the machine.
#
# Needs Go, apt and dpkg-deb. The first run downloads QEMU, a kernel and a few
# tools as Debian packages into a cache (LEAP_CACHE, ~/.cache/leapio); nothing is
# installed.
set -euo pipefail

# say TEXT: a heading. run COMMAND...: shows a command and runs it.
say() { doing=$*; printf '\n--- %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

# stop NAME: ends a daemon, which removes its pid file last of all.
stop() {
	local pid file=$LEAP_RUN_DIR/$1.pid
	pid=$(cat "$file" 2>/dev/null) && kill "$pid" 2>/dev/null || return 0
	for _ in {1..100}; do
		[ -e "$file" ] || return 0
		sleep 0.1
	done
	echo "demo: leap-$1 does not end; it is killed"
	kill -KILL "$pid"
	return 1
}

finish() {
	local status=$?
	trap - EXIT
	# leap-wpt refuses to end while a machine is there.
	leap-soc wait port vm1 waiting --timeout 10s >/dev/null 2>&1 || true
	stop soc || status=1
	stop wpt || status=1
	if [ "$status" != 0 ]; then
		printf '\ndemo: failed at: %s\n' "$doing"
		tail -n 20 "$work"/*.log 2>/dev/null
	fi
	rm -rf "$work"
	exit "$status"
}

work=$(mktemp -d -t leap-demo-XXXXXX)
export LEAP_RUN_DIR=$work/run LEAP_STATE_DIR=$work/state
image=$LEAP_STATE_DIR/volumes/d1.img
memory=512M
trap finish EXIT
trap 'exit 130' INT TERM
cd "$(dirname "$0")/.."

say 'fetch QEMU, a kernel and tools, if the cache lacks them'
go build -o "$work/tool" ./lib/guest/tool
"$work/tool" fetch qemu linux tools
e2fsck=$("$work/tool" path e2fsck)
debugfs=$("$work/tool" path debugfs)

say 'start leap-wpt, which holds the drives of machines, and leap-soc, which does the work behind them'
echo '$ leap-wpt run &'
leap-wpt run 2>"$work/wpt.log" &
echo '$ leap-soc run &'
leap-soc run 2>"$work/soc.log" &
run leap-soc wait runtime soc attached --timeout 20s

say 'make a volume, and a port through which one machine sees it'
run leap-soc volume create d1 file size=256M
run leap-qmap map vm1 d1
run leap-qmap list

# What the guest does; it ends at the first command that fails. A line given to
# notify comes out whole, whatever the kernel prints.
cat >"$work/job" <<'JOB'
run() { printf '# %s\n' "$*" >&2; "$@"; }

until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
run uname -sr
run nvme list
run nvme id-ctrl /dev/nvme0 >/tmp/id
grep -E '^(vid|sn|mn|fr|mdts|cntlid|oacs|oncs|nn|subnqn) ' /tmp/id

run mkfs.ext4 -q /dev/nvme0n1
run mount -t ext4 /dev/nvme0n1 /mnt
echo "written by the guest: $(cat /proc/sys/kernel/random/uuid)" >/mnt/note
head -c 16777216 /dev/urandom >/mnt/data
notify "$(cat /mnt/note)"
notify "$(sha256sum /mnt/data)"

notify fio begins
run fio --name=check --filename=/mnt/fio --size=64M --rw=randrw --bsrange=4k-64k --direct=1 --ioengine=libaio \
	--iodepth=16 --verify=crc32c --verify_fatal=1 --eta=never --output=/tmp/fio
notify fio ends
grep -E 'err=|READ:|WRITE:' /tmp/fio

run umount /mnt
if dmesg | grep -E 'nvme.*(timeout|reset)|I/O error'; then exit 1; fi
JOB

# Your own machine starts with this, in QEMU 10.1 or newer:
#   qemu-system-x86_64 -m 512M $(leap-wpt port qemu vm1 --mem 512M) guest.img
# "tool boot" starts one that has its root file system in memory, runs the job,
# shows what the guest prints and ends with the job's status.
say 'start the machine: stock QEMU, stock Debian kernel'
run leap-wpt port qemu vm1 --mem $memory
echo "\$ qemu-system-x86_64 -m $memory \$(leap-wpt port qemu vm1 --mem $memory) ..."
"$work/tool" boot -mem ${memory%M} -job "$work/job" -- $(leap-wpt port qemu vm1 --mem $memory) |
	while IFS= read -r line; do
		printf '%s\n' "$line" >>"$work/console"
		printf 'vm1 | %s\n' "$line"
		if [ "$line" = 'fio begins' ]; then
			sleep 1
			echo '--- meanwhile, restart leap-soc: the guest sees a pause'
			echo '$ kill $(cat $LEAP_RUN_DIR/soc.pid); leap-soc run &'
			stop soc
			leap-soc run 2>>"$work/soc.log" &
			run leap-soc wait runtime soc attached --timeout 20s
		fi
	done

say 'the machine is off: stop the daemons and look at its drive from outside'
run leap-soc wait port vm1 waiting --timeout 20s
stop soc
stop wpt
echo '$ fsck.ext4 -f -n d1.img'
"$e2fsck" -f -n "$image"
echo '$ debugfs -R "cat /note" d1.img'
note=$("$debugfs" -R 'cat /note' "$image" 2>/dev/null)
echo "$note"
echo '$ debugfs -R "cat /data" d1.img | sha256sum'
sum=$("$debugfs" -R 'cat /data' "$image" 2>/dev/null | sha256sum)
echo "$sum"

say 'compare with what the guest said'
grep -Fx "$note" "$work/console"
grep -Fx "${sum%-}/mnt/data" "$work/console"
printf '\ndemo: the guest and the file agree\n'
