# Run as root in a lab guest by `cargo xtask bench era-writes`: see xtask/src/bench/era_writes.rs.
set -euo pipefail
vgcreate -qq --yes vg0 $LAB_DISKS
for name in bare data tracked; do
  lvcreate -qq --yes -L 256M -n $name vg0
  dd if=/dev/urandom of=/dev/vg0/$name bs=1M oflag=direct status=none || true
done
lvcreate -qq --yes -L 768M -T vg0/pool --poolmetadatasize 16M -c 64k -Zn
lvcreate -qq --yes -V 256M -T vg0/pool -n thin
dd if=/dev/urandom of=/dev/vg0/thin bs=1M oflag=direct status=none || true
lvmsync track enable vg0/tracked > /dev/null
era=/dev/mapper/vg0-tracked-era

measure() {
  local file=$1 start end; shift
  start=${EPOCHREALTIME/./}
  "$@"
  end=${EPOCHREALTIME/./}
  echo $(((end - start) * 1000)) >> "$LAB_JOB/$file"
}
writes() {
  case $1 in
    pages) xtask bench-plain pages "$2" 32 ;;
    run) xtask bench-plain write "$2" $((128 << 20)) --direct ;;
  esac
}
# The volume; what it is called; what makes the next write to each block a first one again.
twice() {
  local device=$1 name=$2 kind=$3
  measure "$name-$kind-first" writes "$kind" "$device"
  measure "$name-$kind-again" writes "$kind" "$device"
}
for run in $(seq "$BENCH_RUNS"); do
  for kind in pages run; do
    measure "bare-$kind" writes $kind /dev/vg0/bare
    lvcreate -qq -s -L 200M -c 4k -n s vg0/data
    twice /dev/vg0/data classic $kind
    lvremove -qq -y vg0/s
    lvcreate -qq -s -n t vg0/thin
    twice /dev/vg0/thin thin $kind
    lvremove -qq -y vg0/t
    dmsetup message vg0-tracked-era 0 checkpoint
    twice $era era $kind
  done
done
tail -n +1 "$LAB_JOB"/*-{first,again,pages,run}
