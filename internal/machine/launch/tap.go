package launch

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tapName has the kernel put the first number that is free in the place of %d.
const tapName = "trayd%d"

// open makes the interface, a port of its bridge, or takes the one that is there.
func (t Tap) open() (*os.File, error) {
	what, use := "a tap for the bridge "+t.Bridge, t.setUp
	if t.Name != "" {
		what, use = "the tap "+t.Name, t.take
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: /dev/net/tun: %w (`modprobe tun` where it is missing)", what, err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	if err := use(fd); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return f, nil
}

// take takes an interface that the host's administrator has made. The kernel would make one
// that is missing, and nobody would know of it.
func (t Tap) take(tun int) error {
	if _, err := os.Stat("/sys/class/net/" + t.Name); err != nil {
		return fmt.Errorf("there is no such interface (`ip tuntap add %s mode tap` makes one)", t.Name)
	}
	tap, err := unix.NewIfreq(t.Name)
	if err != nil {
		return err
	}
	tap.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, tap); err != nil {
		return fmt.Errorf("it can't be had: it is no tap, somebody else has it, or trayd may not (it takes CAP_NET_ADMIN): %w", err)
	}
	return nil
}

func (t Tap) setUp(tun int) error {
	// Any socket leads to the interfaces; this kind is allowed wherever QEMU may run.
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	mtu, err := get(s, t.Bridge, unix.SIOCGIFMTU)
	if err != nil {
		return fmt.Errorf("there is no such interface (`ip link add %s type bridge` makes one): %w", t.Bridge, err)
	}
	if _, err := os.Stat("/sys/class/net/" + t.Bridge + "/bridge"); err != nil {
		return fmt.Errorf("%s is no bridge", t.Bridge)
	}
	tap, err := unix.NewIfreq(tapName)
	if err != nil {
		return err
	}
	tap.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, tap); err != nil {
		return fmt.Errorf("it can't be made (it takes CAP_NET_ADMIN): %w", err)
	}
	// The bridge would else take the MTU of the port that has the least.
	if err := set(s, tap.Name(), unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(mtu.Uint32()) }); err != nil {
		return fmt.Errorf("its MTU can't be the bridge's, %d: %w", mtu.Uint32(), err)
	}
	index, err := get(s, tap.Name(), unix.SIOCGIFINDEX)
	if err != nil {
		return err
	}
	err = set(s, t.Bridge, unix.SIOCBRADDIF, func(r *unix.Ifreq) { r.SetUint32(index.Uint32()) })
	if err != nil {
		return fmt.Errorf("it can't become a port: %w", err)
	}
	flags, err := get(s, tap.Name(), unix.SIOCGIFFLAGS)
	if err != nil {
		return err
	}
	if err := set(s, tap.Name(), unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(flags.Uint16() | unix.IFF_UP) }); err != nil {
		return fmt.Errorf("it can't be taken up: %w", err)
	}
	return nil
}

// get asks for something of an interface (netdevice(7)).
func get(s int, name string, what uint) (*unix.Ifreq, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("%q can't be an interface's name: %w", name, err)
	}
	return r, unix.IoctlIfreq(s, what, r)
}

// set sets something of an interface.
func set(s int, name string, what uint, value func(*unix.Ifreq)) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("%q can't be an interface's name: %w", name, err)
	}
	value(r)
	return unix.IoctlIfreq(s, what, r)
}
