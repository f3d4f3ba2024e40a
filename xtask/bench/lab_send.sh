# Run as root in a lab guest by `cargo xtask bench lab-send`: see xtask/src/bench/lab_send.rs.
set -euo pipefail
vgcreate -qq --yes vg0 $LAB_DISKS
lvcreate -qq --yes -L 768M -n data vg0
lvcreate -qq -s -L 256M -c 4k -n s1 vg0/data
# 22,500 scattered chunks in the first 360 MiB, 22,500 in one run after them.
xtask bench-scatter /dev/vg0/data 22500
head -c $((22500 * 4096)) /dev/urandom | dd of=/dev/vg0/data bs=1M seek=400 iflag=fullblock conv=notrunc,fsync status=none
dmsetup status vg0-s1

measure() {
  local file=$1; shift
  for run in $(seq "$BENCH_RUNS"); do
    local start end
    start=${EPOCHREALTIME/./}
    "$@" > /dev/null
    end=${EPOCHREALTIME/./}
    echo $(((end - start) * 1000)) >> "$LAB_JOB/$file"
  done
  echo "$file: $(tr '\n' ' ' < "$LAB_JOB/$file")"
}
measure ours lvmsync send --quiet --from vg0/s1 vg0/data --stdout
[ -z "${BENCH_ORIGINAL:-}" ] || measure original "$BENCH_ORIGINAL" --quiet --stdout /dev/vg0/s1
