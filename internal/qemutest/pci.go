package qemutest

// Where the guest has its things. No firmware runs before it, so that it is the guest
// who lays out the machine.
const (
	// ram is where an adapter's rings and buffers begin: above the first megabyte with
	// its holes, and far below the end of the machine's 16 MiB.
	ram = 2 << 20
	// mmio is where the adapter's registers go: in the hole below 4 GiB that both pc
	// and q35 leave to PCI.
	mmio = 0xE0000000
)

// Registers of a function's configuration space (PCI 3.0, 6.1 and 6.2.5).
const (
	pciID           = 0x00 // device<<16 | vendor
	pciAbsent       = 0xFFFFFFFF
	pciCommand      = 0x04
	pciClass        = 0x08 // class<<8 | revision
	pciBAR          = 0x10
	pciCapabilities = 0x34

	commandMemory    = 1 << 1
	commandBusMaster = 1 << 2
	bar64            = 1 << 2
)

// pciFunction is a function on PCI bus 0.
type pciFunction struct {
	*qtest
	devfn uint32 // device<<3 | function
}

// pciFunctions are those on bus 0. A device has a function 0 if it has any.
func (q *qtest) pciFunctions() (all []pciFunction) {
	for device := range uint32(32) {
		for function := range uint32(8) {
			f := pciFunction{q, device<<3 | function}
			if f.config(pciID) != pciAbsent {
				all = append(all, f)
			} else if function == 0 {
				break
			}
		}
	}
	return all
}

// point points the configuration data port (PCI 3.0, 3.2.2.3.2) at a register.
func (f pciFunction) point(register uint32) (port uint32) {
	f.out(wide32, 0xCF8, 1<<31|f.devfn<<8|register&^3)
	return 0xCFC
}

func (f pciFunction) config(register uint32) uint32 { return f.in(wide32, f.point(register)) }

func (f pciFunction) setConfig(register, value uint32) {
	f.out(wide32, f.point(register), value)
}

// configByte is a byte of the configuration space.
func (f pciFunction) configByte(register uint32) uint32 {
	return f.config(register) >> (register & 3 * 8) & 0xFF
}

// enable maps the function's registers, and lets it use memory.
func (f pciFunction) enable(bar uint32) (registers uint32) {
	at := pciBAR + 4*bar
	wide := f.config(at)&bar64 != 0
	f.setConfig(at, mmio)
	if wide {
		f.setConfig(at+4, 0)
	}
	f.setConfig(pciCommand, commandMemory|commandBusMaster)
	return mmio
}

// ready is false after a reset, which takes away what enable has set up.
func (f pciFunction) ready() bool { return f.config(pciCommand)&commandMemory != 0 }
