#!/bin/sh
# root.sh CACHE MODULES RELEASE IMAGE PACKAGE...: an ext4 image with a Debian that boots,
# made of the packages of this host's own suite by plain extraction. No maintainer
# script runs, nothing is mounted and nothing of the host changes, so that it works in
# a container and without root. 20 s, most of it unpacking.
set -eu
PATH=$PATH:/usr/sbin:/sbin
cache=$1 modules=$2 release=$3 image=$4
shift 4
archives=$cache/archives root=$cache/root
export DEBIAN_FRONTEND=noninteractive

echo "fetching the edge host's packages (80 MB, once) ..."
rm -rf "$root"
mkdir -p "$archives/partial" "$root"
: >"$cache/status" # apt shall think that nothing is installed
fetch() {
	apt-get -o Dir::State::status="$cache/status" -o Dir::Cache::archives="$archives" -o Dir::Cache::pkgcache= \
		-o Dir::Cache::srcpkgcache= -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
		-o Acquire::Retries=3 -qq -y --download-only install "$@" >/dev/null
}
# Versions that the suite no longer has would be unpacked over the newer ones.
apt-get -o Dir::Cache::archives="$archives" -o Debug::NoLocking=1 -qq autoclean >/dev/null
set -- base-files base-passwd bash coreutils dash "$@"
fetch "$@" || {
	echo "the package lists are missing or old: apt-get update ..."
	apt-get -qq update
	fetch "$@"
}

echo "unpacking them ..."
for dir in bin sbin lib lib64; do # usr-merged, as usrmerge's maintainer script would
	mkdir -p "$root/usr/$dir"
	ln -s "usr/$dir" "$root/$dir"
done
for deb in "$archives"/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --no-same-owner --keep-directory-symlink \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*'
done
# Drivers for what such a machine has, and what volumes and discs are made of. All
# modules would be 400 MB.
mkdir -p "$root/usr/lib/modules/$release"
for part in kernel/arch kernel/crypto kernel/lib kernel/fs kernel/net/9p kernel/net/sunrpc kernel/net/dns_resolver \
	kernel/net/bridge kernel/net/802 kernel/net/llc kernel/drivers/net/tun.ko \
	kernel/drivers/ata kernel/drivers/block kernel/drivers/cdrom kernel/drivers/char kernel/drivers/md \
	kernel/drivers/nvme kernel/drivers/scsi kernel/drivers/virtio modules.builtin modules.builtin.modinfo modules.order; do
	mkdir -p "$(dirname "$root/usr/lib/modules/$release/$part")"
	cp -a --no-preserve=ownership "$modules/$part" "$root/usr/lib/modules/$release/$part"
done

# What the maintainer scripts would have done, as far as it matters here.
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
sed 's/:.*/:*:19000:0:99999:7:::/' "$root/etc/passwd" >"$root/etc/shadow"
chmod 640 "$root/etc/shadow"
cp "$root/usr/share/base-files/profile" "$root/etc/profile"
cp "$root"/usr/share/base-files/dot.* "$root/root/" 2>/dev/null || mkdir -p "$root/root"
ln -sf mawk "$root/usr/bin/awk"
ln -sf which.debianutils "$root/usr/bin/which"
ln -sf dash "$root/usr/bin/sh"
ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
# udev's and tmpfiles' rules speak of groups that udev's script makes.
printf 'g %s - -\n' input sgx kvm render >"$root/usr/lib/sysusers.d/udev.conf"
# And tmpfiles' of a user that rpcbind's makes, which nfs-kernel-server brings along.
printf 'u _rpc - - /run/rpcbind\n' >"$root/usr/lib/sysusers.d/rpcbind.conf"
systemd-sysusers --root="$root" 2>/dev/null
grep -q ^messagebus: "$root/etc/passwd" || {
	echo messagebus:x:100:101::/nonexistent:/usr/sbin/nologin >>"$root/etc/passwd"
	echo messagebus:x:101: >>"$root/etc/group"
}
ldconfig -r "$root"
depmod -b "$root" "$release"
mkdir -p "$root"/proc "$root"/sys "$root"/dev "$root"/run "$root"/tmp "$root"/mnt "$root"/var/tmp
chmod 1777 "$root/tmp" "$root/var/tmp"
for kind in auth account password session; do # by libpam-runtime's script; runuser wants them
	echo "$kind required pam_unix.so" >"$root/etc/pam.d/common-$kind"
done
rm -rf "$root/var/run"
ln -s /run "$root/var/run" # by base-files' script; polkitd looks for D-Bus there
echo edge >"$root/etc/hostname"
echo 127.0.0.1 localhost edge >"$root/etc/hosts"
echo '/dev/vda / ext4 defaults 0 0' >"$root/etc/fstab"
# A machine without an identity would do its first boot's work at every boot.
echo 5ed9e5ed9e5ed9e5ed9e5ed9e5ed9e00 >"$root/etc/machine-id"

# Units that only cost time: nobody logs in, nothing is old enough to be cleaned up.
units=$root/etc/systemd/system
mkdir -p "$units/multi-user.target.wants"
for unit in getty.target e2scrub_all.timer e2scrub_reap.service fstrim.timer apt-daily.timer dpkg-db-backup.timer \
	systemd-tmpfiles-clean.timer systemd-update-utmp.service systemd-firstboot.service ldconfig.service \
	systemd-journal-catalog-update.service systemd-hwdb-update.service systemd-update-done.service; do
	ln -s /dev/null "$units/$unit"
done
ln -s /usr/lib/systemd/system/multi-user.target "$units/default.target"
cat >"$units/edge.service" <<'UNIT'
# Runs the commands that the test's side sends, as root.
[Unit]
DefaultDependencies=no
After=local-fs.target systemd-udevd.service
Conflicts=shutdown.target
[Service]
ExecStart=/run/edgeinit serve
Restart=always
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-900
UNIT
ln -s ../edge.service "$units/multi-user.target.wants/edge.service"

echo "writing the file system ..."
rm -f "$image.new"
mke2fs -q -t ext4 -d "$root" -E root_owner=0:0,lazy_itable_init=1,nodiscard -L edge -m 0 "$image.new" 2G >/dev/null
rm -rf "$root" "$cache/status"
mv "$image.new" "$image"
