//! A disk without room, made of a small tmpfs(5) in a mount namespace of its own.

use crate::support::{Child, Log, Session, files, options, part, record, segment_bytes, wait_until};
use profilemate_format::head::TEXT_OFFSET;
use profilemate_record::{Error, Options, Writer, session_folder};
use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

/// Slots of a segment: 64 KiB with its header.
const SLOTS: u32 = 1023;
const HEAD_BYTES: u64 = TEXT_OFFSET as u64 + 4096;

/// Writes a file of /proc with nothing but system calls.
fn write_proc(path: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: plain system calls with valid pointers.
    let written = unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY);
        let written = libc::write(file, text.as_ptr().cast(), text.len());
        libc::close(file);
        written
    };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs the test `name` in a process that has a disk of `bytes` in its session folder. `None`, with a message, where
/// the system lets nobody but its administrator mount.
fn with_disk(name: &str, bytes: u64) -> Option<Output> {
    let session = Session::new();
    let disk = session.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let target = CString::new(disk.to_str().unwrap()).unwrap();
    let data = CString::new(format!("size={bytes},mode=700")).unwrap();
    // SAFETY: plain system calls.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let maps = [format!("0 {uid} 1"), format!("0 {gid} 1")];
    let mut command = Child::command(&format!("disk_full::{name}"), "child", &disk);
    let enter = move || {
        // SAFETY: plain system calls with valid pointers, in a process of one thread.
        unsafe {
            if uid != 0 || libc::unshare(libc::CLONE_NEWNS) != 0 {
                check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))?;
                write_proc(c"/proc/self/setgroups", b"deny")?;
                write_proc(c"/proc/self/uid_map", maps[0].as_bytes())?;
                write_proc(c"/proc/self/gid_map", maps[1].as_bytes())?;
            }
            let none = std::ptr::null();
            check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
            check(libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, data.as_ptr().cast()))
        }
    };
    // SAFETY: between fork and exec `enter` only makes system calls; what it needs was made before.
    unsafe { command.pre_exec(enter) };
    match command.stderr(std::process::Stdio::piped()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{output:#?}");
            Some(output)
        }
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EPERM | libc::EACCES | libc::ENOSPC | libc::ENOSYS | libc::EINVAL | libc::EUSERS)
            ) =>
        {
            eprintln!("SKIPPED: this system forbids mounts in a namespace of one's own ({error})");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// In the child: options for a log on the small disk.
fn on_disk(folder: &Path) -> Options {
    session_folder::ensure(folder).unwrap();
    options(folder, SLOTS)
}

#[test]
fn no_room_for_the_head() {
    let Some((_, folder)) = part() else {
        with_disk("no_room_for_the_head", HEAD_BYTES - 4096);
        return;
    };
    refused(&on_disk(&folder), ".head");
}

#[test]
fn no_room_for_the_first_segment() {
    let Some((_, folder)) = part() else {
        with_disk("no_room_for_the_first_segment", HEAD_BYTES + segment_bytes(SLOTS) / 2);
        return;
    };
    refused(&on_disk(&folder), ".000000.seg");
}

/// Opening fails with an error that names the file and the cause, and leaves nothing.
fn refused(options: &Options, file: &str) {
    let error = Writer::open(options).unwrap_err();
    let name = options.session_folder.join(format!("raw/engine_core-0-{}{file}", std::process::id()));
    let text = error.to_string();
    assert!(text.contains("cannot reserve space for") && text.contains(name.to_str().unwrap()), "{text}");
    let Error::File { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(files(&options.session_folder), [""; 0]);
}

/// Counts how often a file is made in a folder.
struct Made {
    watch: libc::c_int,
}

impl Made {
    fn new(folder: &Path) -> Self {
        let folder = CString::new(folder.to_str().unwrap()).unwrap();
        // SAFETY: plain system calls with valid pointers.
        let (watch, added) = unsafe {
            let watch = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
            (watch, libc::inotify_add_watch(watch, folder.as_ptr(), libc::IN_CREATE))
        };
        assert!(watch >= 0 && added >= 0, "{}", io::Error::last_os_error());
        Self { watch }
    }

    /// Files made since the last call whose name contains `part`.
    fn count(&self, part: &str) -> usize {
        let mut buffer = [0_u8; 4096];
        // SAFETY: reads into a buffer of that length.
        let length = unsafe { libc::read(self.watch, buffer.as_mut_ptr().cast(), buffer.len()) };
        let events = &buffer[..usize::try_from(length).unwrap_or(0)];
        events.windows(part.len()).filter(|window| *window == part.as_bytes()).count()
    }
}

#[test]
fn records_are_dropped_while_the_disk_is_full_and_written_when_it_is_not() {
    let Some((_, folder)) = part() else {
        // Three segments fit beside the head and a file of two that is in the way, and half of a fourth.
        let bytes = HEAD_BYTES + 5 * segment_bytes(SLOTS) + segment_bytes(SLOTS) / 2;
        let name = "records_are_dropped_while_the_disk_is_full_and_written_when_it_is_not";
        if let Some(output) = with_disk(name, bytes) {
            let complaints = String::from_utf8(output.stderr).unwrap();
            let [line] = complaints.lines().collect::<Vec<_>>()[..] else {
                panic!("not one line: {complaints:?}")
            };
            assert!(
                line.starts_with("profilemate: cannot reserve space for ") && line.contains(".000003.seg"),
                "{line}"
            );
        }
        return;
    };
    let options = on_disk(&folder);
    let filler = folder.join("in_the_way");
    std::fs::write(&filler, vec![1; usize::try_from(2 * segment_bytes(SLOTS)).unwrap()]).unwrap();
    let made = Made::new(&folder.join("raw"));
    let mut writer = Writer::open(&options).unwrap();
    let (mut pushes, mut tries) = (0, 0);
    let mut push = |writer: &mut Writer| {
        let number = writer.written();
        pushes += 1;
        writer.push(&record(number))
    };
    // The recorder tries again from time to time, and says so once.
    wait_until("two tries to make a segment", || {
        push(&mut writer);
        tries += made.count(".000003.seg");
        tries >= 2
    });
    let full = 3 * u64::from(SLOTS);
    assert_eq!(writer.written(), full);
    assert!(!push(&mut writer), "no room");
    // A file whose space cannot be reserved does not stay.
    wait_until("a head and three segments, and nothing else", || files(&folder).len() == 4);

    std::fs::remove_file(&filler).unwrap();
    wait_until("room", || push(&mut writer));
    wait_until("ten more records", || push(&mut writer) && writer.written() == full + 10);

    let path = writer.path().to_owned();
    writer.close();
    let log = Log::read(&path);
    assert_eq!(log.steps(), (0..full + 10).collect::<Vec<_>>());
    assert_eq!(log.head.written + log.head.dropped, pushes);
    assert_eq!((log.slots.damaged, log.head.discarded), (0, 0));
}
