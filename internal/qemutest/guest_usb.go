package qemutest

import "encoding/binary"

// The endpoints of QEMU's usb-storage at SuperSpeed, which it has on qemu-xhci
// (hw/usb/dev-storage.c): the index of their contexts (xHCI 1.2, 4.5.1), and the packet.
const (
	usbBulkIn    = 2*1 + 1 // endpoint 1, in
	usbBulkOut   = 2 * 2   // endpoint 2, out
	usbMaxPacket = 1024
)

// The messages of a command (USB Mass Storage Class, Bulk-Only Transport 1.0, 5).
const (
	cbwSignature = 0x43425355
	cbwSize      = 31
	cbwIn        = 0x80
	cswSignature = 0x53425355
	cswSize      = 13
	cswPassed    = 0
	cswFailed    = 1
)

// The guest's memory, behind what the USB adapter's driver has.
const (
	usbMessage = xhciEnd
	usbData    = xhciEnd + 0x1000
)

// usbStorage is the driver of a USB drive that is the only device on its adapter.
type usbStorage struct {
	pciFunction
	bus     *xhci
	in, out endpoint
	tag     uint32 // of the command
}

func (u *usbStorage) start() {
	u.bus = startXHCI(u.pciFunction)
	u.in = newEndpoint(usbBulkIn, typeBulkIn, usbMaxPacket)
	u.out = newEndpoint(usbBulkOut, typeBulkOut, usbMaxPacket)
	u.bus.configure(u.in, u.out)
}

func (u *usbStorage) send(length int, cdb []byte) (data, sense []byte) {
	return thenSense(u.packet, length, cdb)
}

func (u *usbStorage) packet(length int, cdb []byte) (data []byte, ok bool) {
	le := binary.LittleEndian
	u.tag++
	cbw := le.AppendUint32(nil, cbwSignature)
	cbw = le.AppendUint32(cbw, u.tag)
	cbw = le.AppendUint32(cbw, uint32(length))
	cbw = append(cbw, cbwIn, 0 /* LUN */, byte(len(cdb)))
	cbw = append(cbw, cdb...)
	cbw = append(cbw, make([]byte, cbwSize-len(cbw))...)
	u.write(usbMessage, cbw)
	u.bus.bulk(u.out, usbMessage, cbwSize)
	if length > 0 {
		data = u.read(usbData, u.bus.bulk(u.in, usbData, length))
	}
	csw := u.read(usbMessage, u.bus.bulk(u.in, usbMessage, cswSize))
	if len(csw) != cswSize || le.Uint32(csw) != cswSignature || le.Uint32(csw[4:]) != u.tag || csw[12] > cswFailed {
		u.t.Fatalf("the USB drive answers % x to a command", csw)
	}
	// The drive fills up what it has no data for.
	residue := int(le.Uint32(csw[8:]))
	return data[:min(len(data), length-residue)], csw[12] == cswPassed
}
