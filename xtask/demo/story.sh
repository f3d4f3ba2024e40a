# The story of `cargo xtask demo`, run as root in a lab guest: see xtask/src/demo.rs.
#
# Here is the volume group vg0 with a mounted ext4 volume; the host far has vg1 and is reached over ssh. What is
# measured goes to $LAB_JOB, one JSON object for each transfer.
set -euo pipefail
set -- $LAB_DISKS
HERE_DISK=$1 FAR_DISK=$2
SIZE=256M

# A console does not know how wide the terminal is that shows it.
stty cols "$DEMO_COLUMNS" rows 24 < /dev/console || :

step() { printf '\n== %s\n' "$*"; }
# LVM warns that it keeps no backup of its metadata, which is so because the machine is thrown away.
unwarned() { "$@" 2> >(grep -v 'metadata update is NOT backed up' >&2); }
# Shows a command as a person would type it, then runs it.
run() { printf '$ %s\n' "$*"; unwarned "$@"; }
on_far() { printf 'far$ %s\n' "$*"; unwarned ssh far "$@"; }
# The same for a transfer, and keeps what it says of itself for the table.
transfer() {
  local name=$1; shift
  printf '$ %s\n' "$*"
  "$@" --json --progress "$DEMO_PROGRESS" > "$LAB_JOB/$name.json"
}
on_far_transfer() {
  local name=$1; shift
  printf 'far$ %s\n' "$*"
  ssh far "$* --json --progress none" > "$LAB_JOB/$name.json"
}
digest_here() { sha256sum < "$1" | cut -c-64; }
digest_far() { ssh far "sha256sum < $1" | cut -c-64; }
# Compares two digests, shows them, and ends the demo if they differ.
same() {
  printf '  here: %s\n  far:  %s\n' "$1" "$2"
  [ "$1" = "$2" ] || { echo 'They differ: this must not happen.'; exit 1; }
  echo 'Every byte is equal.'
}

step '1. Two hosts: a volume in use here, an empty one of the same size on the host far'
unwarned vgcreate -qq --yes vg0 "$HERE_DISK"
run lvcreate -qq --yes -L $SIZE -n data vg0
mkfs.ext4 -q /dev/vg0/data
mkdir -p /mnt/data
run mount /dev/vg0/data /mnt/data
mkdir /mnt/data/photos /mnt/data/mail
for n in $(seq 1 12); do head -c 1M /dev/urandom > /mnt/data/photos/$n.jpg; done
echo 'Draft of a letter' > /mnt/data/mail/draft.txt
lab-host add far > /dev/null
unwarned ssh far "vgcreate -qq --yes vg1 $FAR_DISK"
on_far lvcreate -qq --yes -L $SIZE -n data vg1
df -h --output=target,size,used /mnt/data

step '2. First copy: a snapshot, sent whole over ssh; what is zero costs nothing'
run lvcreate -qq -s -L 64M -n s1 vg0/data
transfer first lvmsync send vg0/s1 far:vg1/data

step '3. Files change, the volume stays mounted'
head -c 3M /dev/urandom > /mnt/data/photos/13.jpg
rm /mnt/data/photos/2.jpg
echo 'I have finished the engine.' >> /mnt/data/mail/draft.txt
sync -f /mnt/data
ls -l /mnt/data/mail /mnt/data/photos | awk 'NF > 2 { print "  " $5, $9 }'

step '4. A second snapshot: the new state. The first one says what has changed since'
run lvcreate -qq -s -L 64M -n s2 vg0/data
echo 'written after the snapshot, so it will not arrive' > /mnt/data/mail/later.txt

step '5. Send what changed; far keeps what it overwrites'
transfer changes lvmsync send --from vg0/s1 vg0/s2 far:vg1/data --undo /root/monday.undo

step '6. Is it right? Every byte, and as a file system'
new=$(digest_here /dev/vg0/s2)
same "$new" "$(digest_far /dev/vg1/data)"
on_far e2fsck -f -n /dev/vg1/data 2>&1
on_far 'mkdir -p /mnt/look; mount -o ro,noload /dev/vg1/data /mnt/look; cat /mnt/look/mail/draft.txt; ls -x /mnt/look/photos; umount /mnt/look'

step '7. Undo: far goes back to the first snapshot'
on_far_transfer undo lvmsync apply /root/monday.undo vg1/data
same "$(digest_here /dev/vg0/s1)" "$(digest_far /dev/vg1/data)"
echo 'The photo that was deleted is back, the new one is gone:'
on_far 'mount -o ro,noload /dev/vg1/data /mnt/look; ls -x /mnt/look/photos; umount /mnt/look'

step '8. The first snapshot has served; the second is the base of the next round'
run lvremove -qq --yes vg0/s1
lvs --noheadings -o lv_name,origin,lv_size vg0
umount /mnt/data
