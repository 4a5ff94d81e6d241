"""libvirt.py URI: asks libvirtd over connections that stay, one for each machine.

A line of JSON on stdin is a request, and a line on stdout its answer with the same id. Requests are worked on at once,
those of one machine in turn.
"""
import concurrent.futures
import json
import sys
import threading
import xml.etree.ElementTree

import libvirt

DISK = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>%s<target dev='sda' bus='sata'/><readonly/></disk>"

uri = sys.argv[1]
lock = threading.Lock()  # guards what follows, and stdout
domains = {}  # by machine: its virDomain, each on a connection of its own
asking = None  # the connection for what concerns all machines
libvirt.registerErrorHandler(lambda *_: None, None)


def domain(vm):
    with lock:
        known = domains.get(vm)
    if known is None:
        known = libvirt.open(uri).lookupByName(vm)
        with lock:
            domains[vm] = known
    return known


def change(vm, disc):
    source = "<source file='%s'/>" % disc if disc else ""
    domain(vm).updateDeviceFlags(DISK % source, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def look(dom):
    """What libvirt says of a machine, once it has asked QEMU: before that, after a start, it is what was written down."""
    dom.diskErrors()
    disk = xml.etree.ElementTree.fromstring(dom.XMLDesc()).find("devices/disk")
    source = disk.find("source")
    return dom.name(), {
        "running": dom.isActive() == 1,
        "disc": source.get("file", "") if source is not None else "",
        "open": disk.find("target").get("tray") == "open",
    }


def says():
    global asking
    if asking is None:
        asking = libvirt.open(uri)
    with concurrent.futures.ThreadPoolExecutor(max_workers=5) as lookers:  # more than five wait, by default
        return dict(lookers.map(look, asking.listAllDomains()))


def forget():
    """Drops the connections, which libvirtd's end has ended."""
    global asking
    with lock:
        domains.clear()
        asking = None


def work(line):
    request = json.loads(line)
    answer = {"id": request.pop("id")}
    try:
        answer["says"] = {"change": change, "says": says, "forget": forget, "nothing": dict}[request.pop("do")](**request)
    except libvirt.libvirtError as error:
        answer["error"] = str(error)
    with lock:
        print(json.dumps(answer), flush=True)


with concurrent.futures.ThreadPoolExecutor(max_workers=64) as pool:
    for line in sys.stdin:
        pool.submit(work, line)
