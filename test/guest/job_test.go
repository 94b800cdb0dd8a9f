// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

//go:build guest

package guest_test

// functions come before every job. What they find wrong ends the job: it runs
// under sh -eu.
const functions = `
# drives N: waits until there are N namespaces; the kernel looks for them in the
# background.
drives() {
	tries=0
	until [ "$(ls /dev | grep -cE '^nvme[0-9]+n[0-9]+$')" -ge "$1" ]; do
		tries=$((tries + 1))
		if [ $tries -gt 600 ]; then
			echo "there are no $1 drives after a minute"
			dmesg | tail -n 30
			return 1
		fi
		sleep 0.1
	done
}

# drive NQN NSID: prints the device of a namespace. The kernel numbers devices in
# the order in which it happens to find them.
drive() {
	for device in /sys/block/nvme*; do
		[ -b "/dev/${device##*/}" ] || continue # a path to one
		if [ "$(cat $device/device/subsysnqn) $(cat $device/nsid)" = "$1 $2" ]; then
			echo /dev/${device##*/}
			return
		fi
	done
	echo "no namespace $2 of $1" >&2
	return 1
}

# want EXPECTED COMMAND...: fails unless the command prints what is expected.
want() {
	expected=$1
	shift
	got=$("$@")
	if [ "$got" != "$expected" ]; then
		echo "$*: got $got, want $expected"
		return 1
	fi
}

# eventually COMMAND...: waits until the command succeeds; what it prints is not
# shown.
eventually() {
	patience=$(($(date +%s) + 60))
	until "$@" >/tmp/eventually 2>&1; do
		if [ $(date +%s) -gt $patience ]; then
			cat /tmp/eventually
			echo "$*: not after a minute"
			return 1
		fi
		sleep 0.1
	done
}

# json WORD COMMAND...: gives what the command prints to the host, in a line that
# begins with WORD.
json() {
	word=$1
	shift
	text=$("$@" -o json) || { echo "$*: exit status $?"; return 1; }
	notify "$word $(echo "$text" | tr -d '\n')"
}

# refused REGEXP COMMAND...: fails unless the command fails and says why.
refused() {
	why=$1
	shift
	if said=$("$@" 2>&1); then
		echo "$*: succeeded, want: $why"
		return 1
	fi
	if ! echo "$said" | grep -qE "$why"; then
		echo "$*: said $said, want: $why"
		return 1
	fi
}

# pattern LINE: makes /tmp/pattern, 1 MiB of that line, padded to 32 bytes.
pattern() {
	yes "$(printf '%-31s' "$1")" | head -c 1048576 >/tmp/pattern
}

# mebibytes DEVICE: prints the numbers of those a drive has, from 0.
mebibytes() {
	seq 0 $(($(blockdev --getsize64 $1) / 1048576 - 1))
}

# fill DEVICE LINE: writes repetitions of a line all over a drive, past the page
# cache.
fill() {
	pattern "$2"
	for i in $(mebibytes $1); do
		dd if=/tmp/pattern of=$1 bs=1M seek=$i oflag=direct 2>/tmp/dd || { cat /tmp/dd; return 1; }
	done
}

# alike A B: fails unless two files are the same. That of busybox which compares
# takes a second for four megabytes.
alike() {
	[ "$(md5sum <$1)" = "$(md5sum <$2)" ] || cmp $1 $2
}

# filled DEVICE LINE: looks whether a drive has them.
filled() {
	pattern "$2"
	for i in $(mebibytes $1); do
		dd if=$1 of=/tmp/read bs=1M skip=$i count=1 iflag=direct 2>/tmp/dd || { cat /tmp/dd; return 1; }
		alike /tmp/read /tmp/pattern
	done
}

# storm FILE SIZE BLOCK [DEPTH]: reads and writes of BLOCK to 64k at random places,
# DEPTH at a time, 16 by default. Every block written is read again and held
# against its checksum.
storm() {
	fio --name=storm --filename=$1 --size=$2 --rw=randrw --bsrange=$3-64k --ioengine=libaio --iodepth=${4:-16} --direct=1 \
		--verify=crc32c --verify_fatal=1 --verify_backlog=64 --eta=never --output=/tmp/fio${1##*/} || { cat /tmp/fio${1##*/}; return 1; }
	if ! grep -q 'err= 0' /tmp/fio${1##*/}; then cat /tmp/fio${1##*/}; return 1; fi
}

# size DEVICE BYTES: reports whether the drive has that size.
size() { [ "$(blockdev --getsize64 $1)" = $2 ]; }

# controllers NQN: prints the names of the controllers of a subsystem.
controllers() {
	for controller in /sys/class/nvme/nvme*; do
		[ "$(cat $controller/subsysnqn 2>/dev/null)" != "$1" ] || echo ${controller##*/}
	done
}

# gone NQN: reports whether there is no controller of a subsystem.
gone() { [ -z "$(controllers $1)" ]; }

# healthy [EXPECTED]: fails if the kernel had anything to complain about, beside
# lines that match EXPECTED. What it says of its clocks on a busy host does not
# count.
healthy() {
	dmesg | grep -vE "${1:-^$}" >/tmp/dmesg || true
	if grep -iE 'nvme.*(time.?out|reset|abort|fail|error|invalid|missing|remov|disabl|duplicate|unusual)|I/O error|nobody cared' /tmp/dmesg ||
		grep -E '(EXT4|XFS).*(error|warning|corrupt)|\] (BUG|Oops|WARNING|INFO: task)' /tmp/dmesg; then
		echo 'the kernel complained'
		return 1
	fi
}
`
