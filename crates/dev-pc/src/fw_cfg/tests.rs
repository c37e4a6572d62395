use device::conformance::{self, Subject};
use device::doubles::SmallMemory;
use device::{Clock, IoPart};

use super::*;

struct Bench {
    device: Arc<FwCfg>,
    memory: Arc<SmallMemory>,
}

#[derive(Default)]
struct Heard(Mutex<Vec<Vec<u8>>>);

impl FwCfgSink for Heard {
    fn written(&self, bytes: &[u8]) {
        self.0.lock().push(bytes.to_vec());
    }
}

struct Counter(Mutex<u8>);

impl FwCfgSource for Counter {
    fn content(&self) -> Vec<u8> {
        let mut count = self.0.lock();
        *count += 1;
        vec![*count; 2]
    }
}

impl Bench {
    fn new() -> Bench {
        let memory = Arc::new(SmallMemory::new(0x10000));
        let device = FwCfg::new(memory.clone());
        Bench { device, memory }
    }

    fn select(&self, key: u16) {
        self.device
            .write_part(FwCfgPart::Ports, 0, Width::Word, u64::from(key));
    }

    fn read(&self, count: usize) -> Vec<u8> {
        let next = || self.device.read_part(FwCfgPart::Ports, 1, Width::Byte) as u8;
        (0..count).map(|_| next()).collect()
    }

    /// Runs a DMA request at 0x100; gives the control field after it.
    fn dma(&self, control: u32, length: u32, target: u64) -> u32 {
        let mut request = control.to_be_bytes().to_vec();
        request.extend(length.to_be_bytes());
        request.extend(target.to_be_bytes());
        self.memory.write(0x100, &request).unwrap();
        let low = u64::from(0x100_u32.swap_bytes());
        self.device
            .write_part(FwCfgPart::DmaPorts, 4, Width::Dword, low);
        let mut control = [0; 4];
        self.memory.read(0x100, &mut control).unwrap();
        u32::from_be_bytes(control)
    }

    fn memory(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read(address, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn signature_and_features() {
    let bench = Bench::new();
    bench.select(0);
    assert_eq!(bench.read(6), b"QEMU\0\0");
    bench.select(1);
    assert_eq!(bench.read(4), [3, 0, 0, 0]);
    bench.select(0x4000);
    assert_eq!(bench.read(4), b"QEMU");
    bench.select(0x77);
    assert_eq!(bench.read(2), [0, 0]);
    assert_eq!(
        bench.device.read_part(FwCfgPart::DmaPorts, 0, Width::Qword),
        u64::from_le_bytes(*b"QEMU CFG")
    );
}

#[test]
fn the_directory_lists_files_by_name() {
    let bench = Bench::new();
    let bytes = |text: &[u8]| Item::Bytes(Arc::from(text));
    assert_eq!(bench.device.add_file("etc/b", bytes(b"hello")), Ok(0x20));
    assert_eq!(bench.device.add_file("etc/a", bytes(b"hi")), Ok(0x21));
    bench.select(0x19);
    let directory = bench.read(4 + 128);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..12], [0, 0, 0, 2, 0, 0x21, 0, 0]);
    assert_eq!(directory[12..18], *b"etc/a\0");
    assert_eq!(directory[68..76], [0, 0, 0, 5, 0, 0x20, 0, 0]);
    bench.select(0x20);
    assert_eq!(bench.read(6), b"hello\0");
    assert_eq!(bench.device.add_file("etc/b", bytes(b"again")), Ok(0x20));
    assert_eq!(bench.device.files().len(), 2);
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    for name in ["", &"x".repeat(56), "schön", "a\0b"] {
        assert!(
            bench
                .device
                .add_file(name, Item::Bytes(Arc::from([])))
                .is_err()
        );
    }
    let longest = "x".repeat(55);
    assert!(
        bench
            .device
            .add_file(&longest, Item::Bytes(Arc::from([])))
            .is_ok()
    );
}

#[test]
fn memory_mapped_registers() {
    let bench = Bench::new();
    let write = |offset, width, value| {
        bench
            .device
            .write_part(FwCfgPart::Memory, offset, width, value)
    };
    write(8, Width::Word, 0x0100);
    assert_eq!(
        bench.device.read_part(FwCfgPart::Memory, 0, Width::Dword),
        3
    );
    write(8, Width::Word, 0x0000);
    assert_eq!(
        bench.device.read_part(FwCfgPart::Memory, 0, Width::Qword),
        u64::from_le_bytes(*b"QEMU\0\0\0\0")
    );
}

#[test]
fn dma_reads_skip_and_end_in_zeros() {
    let bench = Bench::new();
    let item = Item::Bytes(Arc::from(b"0123456789".as_slice()));
    let key = bench.device.add_file("opt/digits", item).unwrap();
    bench.memory.write(0x2000, &[0xff; 16]).unwrap();
    assert_eq!(
        bench.dma(u32::from(key) << 16 | DMA_SELECT | DMA_SKIP, 4, 0),
        0
    );
    assert_eq!(bench.dma(DMA_READ, 8, 0x2000), 0);
    assert_eq!(bench.memory(0x2000, 9), b"456789\0\0\xff");
    // Nothing asked for is no error; memory that is not there is.
    assert_eq!(bench.dma(0, 4, 0), 0);
    assert_eq!(bench.dma(DMA_READ, 4, 0xfffe), DMA_ERROR);
    assert_eq!(bench.dma(DMA_READ, u32::MAX, 0x2000), DMA_ERROR);
    assert_eq!(bench.dma(DMA_READ, 1, u64::MAX), DMA_ERROR);
}

#[test]
fn a_request_by_one_wide_or_two_narrow_writes() {
    let bench = Bench::new();
    let mut request = (DMA_SELECT | DMA_READ).to_be_bytes().to_vec();
    request.extend(4_u32.to_be_bytes());
    request.extend(0x3000_u64.to_be_bytes());
    bench.memory.write(0x200, &request).unwrap();
    let write = |offset, width, value| {
        bench
            .device
            .write_part(FwCfgPart::DmaPorts, offset, width, value)
    };
    write(0, Width::Qword, 0x200_u64.swap_bytes());
    assert_eq!(bench.memory(0x3000, 4), b"QEMU");
    bench.memory.write(0x200, &request).unwrap();
    bench.memory.write(0x3000, &[0; 4]).unwrap();
    write(0, Width::Dword, 1);
    write(4, Width::Dword, u64::from(0x200_u32.swap_bytes()));
    // That was at 0x0100000000000200: no memory there.
    assert_eq!(bench.memory(0x3000, 4), [0; 4]);
    write(4, Width::Dword, u64::from(0x200_u32.swap_bytes()));
    assert_eq!(bench.memory(0x3000, 4), b"QEMU");
}

#[test]
fn dma_writes_only_what_is_writable_and_whole() {
    let bench = Bench::new();
    let heard = Arc::new(Heard::default());
    let item = Item::Writable {
        initial: vec![0; 4],
        sink: Some(heard.clone()),
    };
    let key = bench.device.add_file("etc/address", item).unwrap();
    bench.memory.write(0x2000, b"abcdef").unwrap();
    let select = u32::from(key) << 16 | DMA_SELECT;
    assert_eq!(bench.dma(select | DMA_WRITE, 5, 0x2000), DMA_ERROR);
    assert_eq!(bench.dma(select | DMA_WRITE, 2, 0x2000), 0);
    assert_eq!(bench.dma(DMA_WRITE, 2, 0x2004), 0);
    assert_eq!(
        heard.0.lock().as_slice(),
        [b"ab\0\0".to_vec(), b"abef".to_vec()]
    );
    assert_eq!(&*bench.device.content(key), b"abef");
    assert_eq!(bench.dma(DMA_SELECT | DMA_WRITE, 1, 0x2000), DMA_ERROR);
    bench.device.reset(ResetKind::System);
    assert_eq!(&*bench.device.content(key), [0; 4]);
}

#[test]
fn a_computed_item_is_made_when_it_is_selected() {
    let bench = Bench::new();
    let item = Item::Computed(Arc::new(Counter(Mutex::new(0))));
    bench.device.set_item(0x05, item);
    bench.select(5);
    assert_eq!(bench.read(2), [1, 1]);
    bench.select(5);
    assert_eq!(bench.read(3), [2, 2, 0]);
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let bench = Bench::new();
        let item = Item::Writable {
            initial: vec![7; 300],
            sink: None,
        };
        bench.device.add_file("etc/writable", item).unwrap();
        let part = |part| IoPart::new(bench.device.clone(), part);
        Subject {
            ranges: vec![
                (part(FwCfgPart::Ports), 2),
                (part(FwCfgPart::DmaPorts), 8),
                (part(FwCfgPart::Memory), 24),
            ],
            device: bench.device.clone(),
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    });
}
