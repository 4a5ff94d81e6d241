package qemutest

import "encoding/binary"

const ahciClass = 0x010601 // SATA, AHCI

// Registers of the adapter, in BAR 5, and of a port (AHCI 1.3.1, 3.1 and 3.3).
const (
	ahciBAR       = 5
	ahciGHC       = 0x04
	ahciPI        = 0x0C // the ports that are implemented, a bit each
	ahciPorts     = 0x100
	ahciPortSize  = 0x80
	ahciEnable    = 1 << 31 // in GHC
	portCLB       = 0x00    // command list
	portFB        = 0x08    // where the drive's messages (FIS) go
	portIS        = 0x10
	portCMD       = 0x18
	portTFD       = 0x20 // the drive's status register
	portSIG       = 0x24
	portCI        = 0x38    // commands issued, a bit each
	portStart     = 1 << 0  // in CMD
	portReceive   = 1 << 4  // in CMD
	portRunning   = 1 << 15 // in CMD
	portTaskError = 1 << 30 // in IS
	atapiSign     = 0xEB140101
)

// The guest's memory. Only the first of the 32 commands in the list is ever used.
const (
	ahciList  = ram
	ahciFIS   = ram + 0x1000
	ahciTable = ram + 0x2000
	ahciData  = ram + 0x3000

	headerATAPI  = 1 << 5 // AHCI 1.3.1, 4.2.2
	headerPRDs   = 16     // shift of the number of memory regions
	tablePacket  = 0x40   // AHCI 1.3.1, 4.2.3
	tablePRD     = 0x80
	fisH2D       = 0x27 // register FIS, host to device (SATA 3.0, 10.3.4)
	fisIsCommand = 0x80
	fisWords     = 5
	packetDMA    = 1 // a feature of PACKET
)

// ahci is the driver of ICH9's AHCI adapter. It looks for the CD drive on its ports,
// and sends it packets by DMA.
type ahci struct {
	pciFunction
	port uint32 // its registers
}

func (a *ahci) start() {
	hba := a.enable(ahciBAR)
	a.put(wide32, hba+ahciGHC, ahciEnable)
	implemented := a.get(wide32, hba+ahciPI)
	for i := range uint32(32) {
		if implemented>>i&1 == 0 {
			continue
		}
		a.port = hba + ahciPorts + i*ahciPortSize
		a.stop()
		a.put64(a.port+portCLB, ahciList)
		a.put64(a.port+portFB, ahciFIS)
		a.put(wide32, a.port+portCMD, portReceive)
		if a.get(wide32, a.port+portSIG) == atapiSign {
			a.put(wide32, a.port+portCMD, portReceive|portStart)
			return
		}
		a.stop()
	}
	a.t.Fatal("no CD drive on a port of the AHCI adapter")
}

func (a *ahci) send(length int, cdb []byte) (data, sense []byte) {
	return thenSense(a.packet, length, cdb)
}

func (a *ahci) packet(length int, cdb []byte) (data []byte, ok bool) {
	le := binary.LittleEndian
	table := make([]byte, tablePRD+16)
	copy(table, []byte{fisH2D, fisIsCommand, ataPacket, packetDMA})
	copy(table[tablePacket:], cdb)
	header := le.AppendUint32(nil, headerATAPI|fisWords)
	if length > 0 {
		header = le.AppendUint32(nil, 1<<headerPRDs|headerATAPI|fisWords)
		le.PutUint32(table[tablePRD:], ahciData)
		le.PutUint32(table[tablePRD+12:], uint32(length-1))
	}
	header = le.AppendUint32(header, 0) // bytes done so far
	header = le.AppendUint64(header, ahciTable)
	a.write(ahciList, header)
	a.write(ahciTable, table)
	a.put(wide32, a.port+portCI, 1)
	ok = true
	a.until("the SATA drive", func() bool {
		over := a.get(wide32, a.port+portCI) == 0 // asked first: an error comes at its end at the latest
		ok = a.get(wide32, a.port+portIS)&portTaskError == 0
		return !ok || over
	})
	if !ok {
		a.recover()
		return nil, false
	}
	done := le.Uint32(a.read(ahciList+4, 4))
	return a.read(ahciData, min(length, int(done))), true
}

// recover lets the port go on that an error has stopped (AHCI 1.3.1, 6.2.2.1).
func (a *ahci) recover() {
	a.stop()
	a.put(wide32, a.port+portIS, a.get(wide32, a.port+portIS)) // a one clears
	a.put(wide32, a.port+portCMD, portReceive|portStart)
}

func (a *ahci) stop() {
	a.put(wide32, a.port+portCMD, 0)
	a.until("the AHCI port to stop", func() bool { return a.get(wide32, a.port+portCMD)&portRunning == 0 })
}
