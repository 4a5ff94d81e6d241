package qemutest

import "encoding/binary"

const ideClass = 0x010180 // as PIIX3 says: an IDE controller on the ports of old

// The ports of the secondary channel, on which Drive IDE and Legacy hang as its master,
// and the bits of its registers (ATA/ATAPI-6, 7 and PACKET in 8).
const (
	ideData     = 0x170
	ideFeatures = ideData + 1
	ideCountLow = ideData + 4
	ideCountHi  = ideData + 5
	ideDevice   = ideData + 6
	ideStatus   = ideData + 7
	ideCommand  = ideData + 7

	ideMaster = 0xA0
	ataPacket = 0xA0 // the PACKET command
	ataBusy   = 0x80
	ataDRQ    = 0x08
	ataError  = 0x01

	atapiSize = 12 // of a command packet
)

// ide is the driver of PIIX3's secondary IDE channel, by programmed I/O.
type ide struct{ *qtest }

func (d ide) ready() bool { return true } // the ports are always there
func (d ide) start()      {}

func (d ide) send(length int, cdb []byte) (data, sense []byte) {
	return thenSense(d.packet, length, cdb)
}

func (d ide) packet(length int, cdb []byte) (data []byte, ok bool) {
	d.out(wide8, ideDevice, ideMaster)
	d.out(wide8, ideFeatures, 0) // no DMA
	d.out(wide8, ideCountLow, uint32(length&0xFF))
	d.out(wide8, ideCountHi, uint32(length>>8))
	d.out(wide8, ideCommand, ataPacket)
	full := make([]byte, atapiSize)
	copy(full, cdb)
	for i := 0; i < len(full); i += 2 {
		d.out(wide16, ideData, uint32(binary.LittleEndian.Uint16(full[i:])))
	}
	var status uint32
	d.until("the IDE drive", func() bool {
		status = d.in(wide8, ideStatus)
		return status&ataBusy == 0
	})
	if status&ataDRQ != 0 {
		data = d.ins(ideData, length/2)
	}
	return data, status&ataError == 0
}
