# Run as root in a lab guest by `cargo xtask bench thin-send`: see xtask/src/bench/thin_send.rs.
set -euo pipefail
vgcreate -qq --yes vg0 $LAB_DISKS
lvcreate -qq --yes -L 4600M -T vg0/pool --poolmetadatasize 16M -c 64k -Zn
lvcreate -qq --yes -V 4G -T vg0/pool -n full
lvcreate -qq --yes -V 4G -T vg0/pool -n tenth
head -c 64M /dev/urandom > /tmp/noise
for n in $(seq 0 63); do dd if=/tmp/noise of=/dev/vg0/full bs=1M seek=$((n * 64)) conv=notrunc status=none; done
# 51 MiB at every 512 MiB: a tenth.
for n in 0 1 2 3 4 5 6 7; do
  dd if=/tmp/noise of=/dev/vg0/tenth bs=1M count=51 seek=$((n * 512)) conv=notrunc status=none
done
sync
for name in full tenth; do
  lvcreate -qq -s -n s_$name vg0/$name
  lvchange -qq -pr vg0/s_$name
  lvchange -qq -ay -K vg0/s_$name
done

measure() {
  local file=$1 start end; shift
  start=${EPOCHREALTIME/./}
  "$@" > /dev/null
  end=${EPOCHREALTIME/./}
  echo $(((end - start) * 1000)) >> "$LAB_JOB/$file"
}
for run in $(seq "$BENCH_RUNS"); do
  measure read dd if=/dev/vg0/s_full iflag=direct bs=1M status=none
  measure full lvmsync send --quiet vg0/s_full --stdout
  measure tenth lvmsync send --quiet vg0/s_tenth --stdout
  measure lvs lvs vg0
  [ -z "${BENCH_THIN_SEND:-}" ] || measure thin_send "$BENCH_THIN_SEND" vg0/s_tenth
done
tail -n +1 "$LAB_JOB"/{read,full,tenth,lvs}
