package qemutest

import "encoding/binary"

// The two faces of virtio-scsi-pci (virtio 1.1, 4.1.2); both have the modern registers.
const (
	virtioSCSIID             = 0x1048<<16 | 0x1AF4
	virtioSCSITransitionalID = 0x1004<<16 | 0x1AF4
)

// The capabilities that say where the registers are (virtio 1.1, 4.1.4).
const (
	virtioCapability = 0x09 // vendor specific
	virtioCapType    = 3    // a byte
	virtioCapBAR     = 4    // a byte
	virtioCapOffset  = 8
	virtioCapNotify  = 16 // only of a notify capability: the multiplier
	virtioCommon     = 1  // the types
	virtioNotify     = 2
)

// Registers of the common configuration (virtio 1.1, 4.1.4.3).
const (
	virtioDriverFeatureSelect = 8
	virtioDriverFeature       = 12
	virtioStatus              = 20
	virtioQueueSelect         = 22
	virtioQueueEnable         = 28
	virtioQueueNotifyOff      = 30
	virtioQueueDesc           = 32
	virtioQueueDriver         = 40
	virtioQueueDevice         = 48

	virtioFeaturesHigh = 1      // the select of bits 32 to 63
	virtioVersion1     = 1 << 0 // bit 32
)

// Bits of the device status, in the order in which a driver sets them (2.1, 3.1.1).
const (
	virtioReset       = 0
	virtioAcknowledge = 1
	virtioDriver      = 2
	virtioFeaturesOK  = 8
	virtioDriverOK    = 4
)

// The request queue (2.6). One command follows the other, each in the same chain of
// descriptors, which begins with 0. So every entry of the available ring is 0, as the
// memory is, and only the ring's index is ever written.
const (
	virtioRequestQueue = 2 // after the queues for task management and events (5.6.2)

	virtioDesc  = ram
	virtioAvail = ram + 0x1000
	virtioUsed  = ram + 0x2000
	virtioIndex = 2 // in avail and used: how many chains there have been

	descNext  = 1
	descWrite = 2 // the device does

	virtioRequest  = ram + 0x3000
	virtioResponse = ram + 0x4000
	virtioData     = ram + 0x5000
)

// A SCSI command and its response (5.6.6.1); sense and CDB sizes are the defaults.
const (
	requestSize     = 8 + 8 + 3 + 32 // lun, id, attributes, cdb
	requestCDB      = 8 + 8 + 3
	responseSize    = 12 + 96
	responseResidue = 4
	responseStatus  = 10 // the drive's
	responseOwn     = 11 // the adapter's: 0 unless it could not reach the drive
	responseSense   = 12
)

// virtioSCSI is the driver of a virtio-scsi adapter. The drive is its target 0.
type virtioSCSI struct {
	pciFunction
	doorbell uint32
	count    uint16 // of commands
}

func (s *virtioSCSI) start() {
	var bar, common, notify, multiplier uint32
	for at := s.configByte(pciCapabilities); at != 0; at = s.configByte(at + 1) {
		if s.configByte(at) != virtioCapability {
			continue
		}
		switch s.configByte(at + virtioCapType) {
		case virtioCommon:
			bar, common = s.configByte(at+virtioCapBAR), s.config(at+virtioCapOffset)
		case virtioNotify: // in the same BAR, as QEMU has it
			notify, multiplier = s.config(at+virtioCapOffset), s.config(at+virtioCapNotify)
		}
	}
	registers := s.enable(bar)
	common += registers

	s.put(wide8, common+virtioStatus, virtioReset)
	s.put(wide8, common+virtioStatus, virtioAcknowledge)
	s.put(wide8, common+virtioStatus, virtioAcknowledge|virtioDriver)
	s.put(wide32, common+virtioDriverFeatureSelect, virtioFeaturesHigh)
	s.put(wide32, common+virtioDriverFeature, virtioVersion1)
	s.put(wide8, common+virtioStatus, virtioAcknowledge|virtioDriver|virtioFeaturesOK)
	s.clear(ram, virtioRequest-ram) // what an earlier boot left
	s.count = 0
	s.put(wide16, common+virtioQueueSelect, virtioRequestQueue)
	s.put64(common+virtioQueueDesc, virtioDesc)
	s.put64(common+virtioQueueDriver, virtioAvail)
	s.put64(common+virtioQueueDevice, virtioUsed)
	s.put(wide16, common+virtioQueueEnable, 1)
	s.doorbell = registers + notify + multiplier*s.get(wide16, common+virtioQueueNotifyOff)
	s.put(wide8, common+virtioStatus, virtioAcknowledge|virtioDriver|virtioFeaturesOK|virtioDriverOK)
}

func (s *virtioSCSI) send(length int, cdb []byte) (data, sense []byte) {
	request := make([]byte, requestSize)
	request[0] = 1 // LUN structure of 5.6.6.1: target 0, LUN 0
	request[2] = 0x40
	copy(request[requestCDB:], cdb)
	s.write(virtioRequest, request)

	desc := descriptor(nil, virtioRequest, requestSize, descNext)
	if length == 0 {
		desc = descriptor(desc, virtioResponse, responseSize, descWrite)
	} else {
		desc = descriptor(desc, virtioResponse, responseSize, descWrite|descNext)
		desc = descriptor(desc, virtioData, length, descWrite)
	}
	s.write(virtioDesc, desc)
	s.count++
	s.put(wide16, virtioAvail+virtioIndex, uint32(s.count))
	s.put(wide16, s.doorbell, virtioRequestQueue)
	s.until("the virtio-scsi drive", func() bool {
		return s.get(wide16, virtioUsed+virtioIndex) == uint32(s.count)
	})

	le := binary.LittleEndian
	response := s.read(virtioResponse, responseSize)
	if response[responseOwn] != 0 {
		s.t.Fatalf("virtio-scsi can't reach target 0: response %d", response[responseOwn])
	}
	if response[responseStatus] != 0 {
		return nil, response[responseSense:][:le.Uint32(response)]
	}
	return s.read(virtioData, length-int(le.Uint32(response[responseResidue:]))), nil
}

// descriptor appends one of a chain (2.6.5).
func descriptor(chain []byte, addr, size int, flags uint16) []byte {
	le := binary.LittleEndian
	next := len(chain)/16 + 1
	chain = le.AppendUint64(chain, uint64(addr))
	chain = le.AppendUint32(chain, uint32(size))
	chain = le.AppendUint16(chain, flags)
	return le.AppendUint16(chain, uint16(next))
}
