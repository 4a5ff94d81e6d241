# cd.sh SOCKET insert|change DISC, or cd.sh SOCKET eject: the disc in the drive cd0 of the
# QEMU whose monitor is SOCKET.
socket=$1 verb=$2 disc=${3:-}

coproc qmp { exec socat - "UNIX-CONNECT:$socket"; }
read -r greeting <&"${qmp[0]}" || exit 1

# say sends a command and reads up to its answer, past events.
say() {
	printf '%s\n' "$1" >&"${qmp[1]}"
	while read -r answer <&"${qmp[0]}"; do
		case $answer in
		*'"error"'*) echo "$answer" >&2; exit 1 ;;
		*'"return"'*) return ;;
		esac
	done
	exit 1
}

say '{"execute": "qmp_capabilities"}'
case $verb in change | eject) say '{"execute": "eject", "arguments": {"id": "cd0"}}' ;; esac
case $verb in insert | change)
	say '{"execute": "blockdev-change-medium", "arguments": {"id": "cd0", "filename": "'"$disc"'", "format": "raw", "read-only-mode": "read-only"}}' ;;
esac
