package qemutest

import "encoding/binary"

const xhciClass = 0x0C0330 // USB, xHCI

// Registers of the adapter (xHCI 1.2, 5.3 to 5.5), in BAR 0. There are four sets of
// them; the first says where the others begin.
const (
	xhciBAR = 0

	capLength    = 0x00 // a byte: where the operational registers are
	capStructure = 0x04 // HCSPARAMS1, with the number of ports in its highest byte
	capDoorbells = 0x14 // DBOFF
	capRuntime   = 0x18 // RTSOFF

	opCommand     = 0x00 // USBCMD
	opStatus      = 0x04 // USBSTS
	opCommandRing = 0x18 // CRCR
	opContexts    = 0x30 // DCBAAP
	opConfig      = 0x38 // the number of slots, that is of devices
	opPorts       = 0x400
	opPortSize    = 0x10

	runEventSegments = 0x28 // of interrupter 0: ERSTSZ
	runEventTable    = 0x30 // ERSTBA
	runEventDequeue  = 0x38 // ERDP

	commandRun     = 1 << 0
	commandReset   = 1 << 1
	statusNotReady = 1 << 11
	portConnected  = 1 << 0
	portReset      = 1 << 4
	portPower      = 1 << 9
	portSpeed      = 10 // shift
)

// Transfer request blocks, TRBs (6.4): their types, and the bits of their last word.
const (
	trbNormal            = 1 << 10
	trbSetup             = 2 << 10
	trbStatus            = 4 << 10
	trbLink              = 6 << 10
	trbEnableSlot        = 9 << 10
	trbAddressDevice     = 11 << 10
	trbConfigureEndpoint = 12 << 10
	trbTransferEvent     = 32 << 10
	trbCommandEvent      = 33 << 10
	trbTypes             = 0x3F << 10

	trbCycle     = 1 << 0
	trbToggle    = 1 << 1  // in a link: the cycle bit changes
	trbInterrupt = 1 << 5  // completion makes an event
	trbImmediate = 1 << 6  // in a set-up: the request is in the TRB
	trbIn        = 1 << 16 // in a status
	trbSlot      = 24      // shift

	eventLeft  = 0xFFFFFF // in an event's third word: bytes not transferred
	eventCode  = 24       // shift, there, of the completion code (6.4.5)
	success    = 1
	successFew = 13 // with less data than there was room for
)

// Contexts (6.2), of 32 bytes each in QEMU. A device's context is that of its slot, and
// then those of its endpoints by their index; an input context begins with one more,
// which says in its second word what is meant.
const (
	contextSize = 32

	slotSpeed   = 20 // shift
	slotEntries = 27 // shift: the last endpoint's index
	slotPort    = 16 // shift, in the second word

	endpointRetries = 3 << 1 // in the second word
	endpointType    = 3      // shift, there
	endpointPacket  = 16     // shift, there
	typeBulkOut     = 2
	typeControl     = 4
	typeBulkIn      = 6
)

// The guest's memory.
const (
	xhciContexts   = ram          // the array of devices' contexts
	xhciDevice     = ram + 0x1000 // the context of ours
	xhciInput      = ram + 0x2000
	xhciEventTable = ram + 0x3000
	xhciEvents     = ram + 0x4000 // rings, with a page each
	xhciCommands   = ram + 0x5000
	xhciTransfers  = ram + 0x6000 // of the endpoint with index 0, 1, ...
	xhciEnd        = ram + 0x10000

	ringSize = 16 // TRBs; the fewest that an event ring may have (6.5)
	trbSize  = 16
)

// trb is what stands in a ring: what is to be done, or an event.
type trb [4]uint32

// ring is a ring of TRBs (4.9). A cycle bit that changes with every round tells the
// TRBs of this round from those of the last.
type ring struct {
	base, next, cycle uint32
}

// endpoint is an endpoint of the device, which is known by the index of its context
// (4.5.1).
type endpoint struct {
	index, kind, packet uint32
	ring                *ring
}

func newEndpoint(index, kind, packet uint32) endpoint {
	return endpoint{index, kind, packet, &ring{base: xhciTransfers + index*0x1000, cycle: trbCycle}}
}

// xhci is the driver of a USB adapter with one device on it. It waits for the end of
// everything that it begins.
type xhci struct {
	pciFunction
	operational, runtime, doorbells uint32 // registers
	port, speed, slot               uint32 // the device's
	events, commands                *ring
	control                         endpoint
}

// startXHCI starts the adapter (4.2), and addresses the device (4.3).
func startXHCI(f pciFunction) *xhci {
	registers := f.enable(xhciBAR)
	x := &xhci{
		pciFunction: f,
		operational: registers + f.get(wide8, registers+capLength),
		runtime:     registers + f.get(wide32, registers+capRuntime),
		doorbells:   registers + f.get(wide32, registers+capDoorbells),
		events:      &ring{base: xhciEvents, cycle: trbCycle},
		commands:    &ring{base: xhciCommands, cycle: trbCycle},
		control:     newEndpoint(1, typeControl, 512), // a SuperSpeed device's
	}
	x.put(wide32, x.operational+opCommand, commandReset)
	x.until("the xHCI adapter", func() bool {
		return x.get(wide32, x.operational+opStatus)&statusNotReady == 0
	})
	x.clear(ram, xhciEnd-ram) // what an earlier boot left
	x.put(wide32, x.operational+opConfig, 1)
	x.put64(x.operational+opContexts, xhciContexts)
	x.put64(x.operational+opCommandRing, xhciCommands|trbCycle)
	x.writeWords(xhciEventTable, xhciEvents, 0, ringSize) // 6.5
	x.put(wide32, x.runtime+runEventSegments, 1)
	x.put64(x.runtime+runEventDequeue, xhciEvents)
	x.put64(x.runtime+runEventTable, xhciEventTable)
	x.put(wide32, x.operational+opCommand, commandRun)

	x.reset(f.get(wide32, registers+capStructure) >> 24)
	x.slot = x.command(trb{3: trbEnableSlot})[3] >> trbSlot
	x.put64(xhciContexts+8*x.slot, xhciDevice)
	x.input(x.control)
	x.command(trb{xhciInput, 0, 0, trbAddressDevice | x.slot<<trbSlot})
	return x
}

// reset finds the device on one of the ports, and resets it.
func (x *xhci) reset(ports uint32) {
	for x.port = 1; x.port <= ports; x.port++ {
		at := x.operational + opPorts + (x.port-1)*opPortSize
		if x.get(wide32, at)&portConnected == 0 {
			continue
		}
		x.put(wide32, at, portPower|portReset)
		x.until("the reset of the USB port", func() bool { return x.get(wide32, at)&portReset == 0 })
		x.speed = x.get(wide32, at) >> portSpeed & 0xF
		return
	}
	x.t.Fatal("there is no device on the xHCI adapter")
}

// configure sets the device's only configuration, with its endpoints.
func (x *xhci) configure(endpoints ...endpoint) {
	x.input(endpoints...)
	x.command(trb{xhciInput, 0, 0, trbConfigureEndpoint | x.slot<<trbSlot})
	const setConfiguration, configuration = 9 << 8, 1 << 16 // USB 3.2, 9.4.7
	x.transfer(x.control,
		trb{setConfiguration | configuration, 0, 8, trbSetup | trbImmediate},
		trb{3: trbStatus | trbIn | trbInterrupt})
}

// input fills in the input context: endpoints that are to be added to the device, the
// last one last.
func (x *xhci) input(endpoints ...endpoint) {
	x.clear(xhciInput, xhciEventTable-xhciInput)
	added := uint32(1) // the slot
	for _, e := range endpoints {
		added |= 1 << e.index
		x.writeWords(xhciInput+(1+e.index)*contextSize, 0,
			endpointRetries|e.kind<<endpointType|e.packet<<endpointPacket, e.ring.base|trbCycle)
	}
	last := endpoints[len(endpoints)-1].index
	x.writeWords(xhciInput+contextSize, x.speed<<slotSpeed|last<<slotEntries, x.port<<slotPort)
	x.writeWords(xhciInput, 0, added)
}

// bulk transfers up to length bytes to or from addr. It returns how many it were.
func (x *xhci) bulk(e endpoint, addr uint32, length int) int {
	event := x.transfer(e, trb{addr, 0, uint32(length), trbNormal | trbInterrupt})
	return length - int(event[2]&eventLeft)
}

// command has the adapter do something, and transfer the device.
func (x *xhci) command(t trb) (event trb) { return x.do(x.commands, 0, 0, trbCommandEvent, t) }

func (x *xhci) transfer(e endpoint, ts ...trb) (event trb) {
	return x.do(e.ring, x.slot, e.index, trbTransferEvent, ts...)
}

// do puts TRBs into a ring, rings its doorbell (4.7), and waits for the event.
func (x *xhci) do(r *ring, doorbell, target, kind uint32, ts ...trb) trb {
	for _, t := range ts {
		x.push(r, t)
	}
	x.put(wide32, x.doorbells+4*doorbell, target)
	event := x.event()
	for event[3]&trbTypes != kind { // a port's change of state
		event = x.event()
	}
	if code := event[2] >> eventCode; code != success && code != successFew {
		x.t.Fatalf("the xHCI adapter does % x with completion code %d", ts, code)
	}
	return event
}

// push puts a TRB into a ring, whose last one is the link back to the first.
func (x *xhci) push(r *ring, t trb) {
	t[3] |= r.cycle
	x.writeWords(r.base+r.next*trbSize, t[:]...)
	if r.next++; r.next == ringSize-1 {
		x.writeWords(r.base+r.next*trbSize, r.base, 0, 0, trbLink|trbToggle|r.cycle)
		r.next, r.cycle = 0, r.cycle^trbCycle
	}
}

// event waits for the next event, and makes room for another.
func (x *xhci) event() (t trb) {
	r := x.events
	x.until("the USB drive", func() bool {
		b := x.read(r.base+r.next*trbSize, trbSize)
		for i := range t {
			t[i] = binary.LittleEndian.Uint32(b[4*i:])
		}
		return t[3]&trbCycle == r.cycle
	})
	if r.next++; r.next == ringSize {
		r.next, r.cycle = 0, r.cycle^trbCycle
	}
	x.put64(x.runtime+runEventDequeue, r.base+r.next*trbSize)
	return t
}

// writeWords writes 32-bit words to memory.
func (x *xhci) writeWords(addr uint32, words ...uint32) {
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	x.write(addr, b)
}
