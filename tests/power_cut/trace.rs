//! Turns system calls into steps of a disk: descriptors become inodes, paths become places, and an answer on
//! the socket becomes an acknowledgement. Pure, but for the comparison with the real directory at the end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::disk::{Disk, Entry, Fate, Inode, Operation, Place, Ticket};
use super::strace::{Argument, Call};

/// The calls that `strace` must record; `?` keeps those quiet that a machine does not have.
pub(crate) const CALLS: &str = "?open,?openat,?creat,?close,?dup,?dup2,?dup3,?fcntl,?lseek,?write,?pwrite64,?writev,\
    ?pwritev,?pwritev2,?copy_file_range,?sendfile,?splice,?ftruncate,?truncate,?fallocate,?rename,?renameat,\
    ?renameat2,?link,?linkat,?symlink,?symlinkat,?unlink,?unlinkat,?mkdir,?mkdirat,?rmdir,?fsync,?fdatasync,\
    ?sync,?syncfs,?sendto,?sendmsg";

/// What is below the root and no part of the data: the socket and the lock, and what the test itself writes.
const IGNORED: [&str; 3] = ["home/run", "daemon.log", "strace.log"];

fn is_ignored(path: &Path) -> bool {
    IGNORED.iter().any(|ignored| path.starts_with(ignored))
}

/// What happened, step by step.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// The steps.
    pub(crate) operations: Vec<Operation>,
    /// The disk after the last of them.
    pub(crate) end: Disk,
    /// The last path of each inode, below the root.
    pub(crate) paths: HashMap<Inode, PathBuf>,
}

/// An open file; descriptors that were duplicated share it.
#[derive(Debug)]
struct Open {
    inode: Inode,
    offset: usize,
    append: bool,
}

/// Where a path leads.
enum Target {
    /// Not below the root, or ignored.
    Elsewhere,
    /// The root itself.
    Root,
    /// A name in a directory, which need not exist.
    Place(Place),
}

struct Translator {
    root: PathBuf,
    disk: Disk,
    operations: Vec<Operation>,
    paths: HashMap<Inode, PathBuf>,
    open: HashMap<i64, Rc<RefCell<Open>>>,
    /// The beginning of a line that is being written to a descriptor that is not one of our files.
    lines: HashMap<i64, Vec<u8>>,
    next_inode: Inode,
    next_ticket: Ticket,
    /// Syncs under way, by call.
    syncs: HashMap<usize, Ticket>,
}

/// Translates the calls of a run that began with an empty directory at `root`.
pub(crate) fn translate(calls: &[Call], root: &Path) -> Result<Log, String> {
    let mut translator = Translator {
        root: root.to_owned(),
        disk: Disk::default(),
        operations: Vec::new(),
        paths: HashMap::from([(0, PathBuf::new())]),
        open: HashMap::new(),
        lines: HashMap::new(),
        next_inode: 1,
        next_ticket: 0,
        syncs: HashMap::new(),
    };
    // What a call did happened between its two lines: what takes effect for certain only at the end is taken
    // there, what may take effect at once at the beginning.
    let mut moments: Vec<(usize, bool, usize)> = Vec::with_capacity(calls.len() * 2);
    for (index, call) in calls.iter().enumerate() {
        moments.push((call.begun, false, index));
        moments.push((call.ended, true, index));
    }
    moments.sort_unstable();
    for (line, end, index) in moments {
        let call = &calls[index];
        let step = if end {
            translator.ended(index, call)
        } else {
            translator.begun(index, call)
        };
        step.map_err(|what| format!("line {} ({}): {what}", line + 1, call.name))?;
    }
    Ok(Log {
        operations: translator.operations,
        end: translator.disk,
        paths: translator.paths,
    })
}

fn descriptor(call: &Call, index: usize) -> Result<i64, String> {
    call.arguments
        .get(index)
        .and_then(Argument::number)
        .ok_or_else(|| format!("argument {index} is no descriptor: {:?}", call.arguments.get(index)))
}

fn word(call: &Call, index: usize) -> &str {
    call.arguments.get(index).and_then(Argument::word).unwrap_or_default()
}

/// The data that a call wrote: as much as it says it did.
fn written(call: &Call, index: usize) -> Result<&[u8], String> {
    let bytes = call
        .arguments
        .get(index)
        .and_then(Argument::bytes)
        .ok_or_else(|| format!("argument {index} is no data"))?;
    let length = call.result.unwrap_or(0) as usize;
    bytes
        .get(..length)
        .ok_or_else(|| "more was written than there is".to_owned())
}

impl Translator {
    fn emit(&mut self, operation: Operation) {
        self.disk.apply(&operation);
        self.operations.push(operation);
    }

    fn begun(&mut self, index: usize, call: &Call) -> Result<(), String> {
        match call.name.as_str() {
            "close" => {
                // From here on the number may be given to another file.
                let number = descriptor(call, 0)?;
                self.open.remove(&number);
                self.lines.remove(&number);
            }
            "fsync" | "fdatasync" => {
                let open = self.open.get(&descriptor(call, 0)?);
                if let Some(inode) = open.map(|open| open.borrow().inode) {
                    let ticket = self.next_ticket;
                    self.next_ticket += 1;
                    self.syncs.insert(index, ticket);
                    self.emit(Operation::SyncBegins { ticket, inode });
                }
            }
            "write" | "writev" | "sendto" | "sendmsg" if call.result.is_some() => {
                let number = descriptor(call, 0)?;
                if !self.open.contains_key(&number) && number > 2 {
                    // An answer may have gone out as soon as the call began.
                    self.answers(number, call)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn answers(&mut self, number: i64, call: &Call) -> Result<(), String> {
        let bytes = written(call, 1)?.to_vec();
        let line = self.lines.entry(number).or_default();
        line.extend(bytes);
        let mut ids = Vec::new();
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let rest = line.split_off(end + 1);
            if let Ok(answer) = serde_json::from_slice::<serde_json::Value>(line)
                && answer.get("result").is_some()
                && let Some(id) = answer["id"].as_str()
            {
                ids.push(id.to_owned());
            }
            *line = rest;
        }
        for id in ids {
            self.emit(Operation::Acknowledged { id });
        }
        Ok(())
    }

    fn ended(&mut self, index: usize, call: &Call) -> Result<(), String> {
        if let Some(ticket) = self.syncs.remove(&index)
            && call.result == Some(0)
        {
            self.emit(Operation::SyncEnded { ticket });
        }
        let Some(result) = call.result else {
            return Ok(()); // It failed: nothing happened.
        };
        match call.name.as_str() {
            "open" => self.opened(None, 0, word(call, 1), result, call),
            "creat" => self.opened(None, 0, "O_CREAT|O_TRUNC", result, call),
            "openat" => self.opened(Some(0), 1, word(call, 2), result, call),
            "dup" | "dup2" | "dup3" => self.duplicated(call, result),
            "fcntl" if word(call, 1).starts_with("F_DUPFD") => self.duplicated(call, result),
            "lseek" => {
                if let Some(open) = self.open.get(&descriptor(call, 0)?) {
                    open.borrow_mut().offset = result as usize;
                }
                Ok(())
            }
            "write" | "writev" => self.wrote(call, None),
            "pwrite64" | "pwritev" | "pwritev2" => {
                let offset = call.arguments.get(3).and_then(Argument::number).ok_or("no offset")?;
                self.wrote(call, Some(offset as usize))
            }
            "copy_file_range" => self.copied(
                descriptor(call, 0)?,
                descriptor(call, 2)?,
                [word(call, 1), word(call, 3)],
                result,
            ),
            "sendfile" => self.copied(
                descriptor(call, 1)?,
                descriptor(call, 0)?,
                [word(call, 2), "NULL"],
                result,
            ),
            "splice" => match self.open.get(&descriptor(call, 2)?) {
                Some(_) => Err("a file is written in a way that is not modelled".to_owned()),
                None => Ok(()),
            },
            "ftruncate" => {
                let inode = self.inode(descriptor(call, 0)?);
                self.truncated(inode, call)
            }
            "truncate" => {
                let inode = self.target_inode(None, 0, call)?;
                self.truncated(inode, call)
            }
            "fallocate" => self.allocated(call),
            "rename" => self.renamed((None, 0), (None, 1), call),
            "renameat" | "renameat2" => self.renamed((Some(0), 1), (Some(2), 3), call),
            "link" => self.linked((None, 0), (None, 1), call),
            "linkat" => self.linked((Some(0), 1), (Some(2), 3), call),
            "unlink" | "rmdir" => self.removed(None, 0, call),
            "unlinkat" => self.removed(Some(0), 1, call),
            "mkdir" => self.made(None, 0, call),
            "mkdirat" => self.made(Some(0), 1, call),
            "symlink" => self.never(None, 1, call),
            "symlinkat" => self.never(Some(1), 2, call),
            "sync" | "syncfs" => Err("a sync of everything is not modelled".to_owned()),
            _ => Ok(()),
        }
    }

    /// Where the path in one argument leads, from the directory in another one.
    fn target(&self, directory: Option<usize>, path: usize, call: &Call) -> Result<Target, String> {
        let bytes = call.arguments.get(path).and_then(Argument::bytes).ok_or("no path")?;
        let path = Path::new(std::str::from_utf8(bytes).map_err(|_| "a path that is not UTF-8")?);
        let from = directory.map_or("AT_FDCWD", |index| word(call, index));
        let mut at = 0;
        let inside: PathBuf = if path.is_absolute() || from == "AT_FDCWD" {
            // The daemon's working directory is the root of all.
            match Path::new("/").join(path).strip_prefix(&self.root) {
                Ok(inside) => inside.to_owned(),
                Err(_) => return Ok(Target::Elsewhere),
            }
        } else {
            match self
                .open
                .get(&from.parse().map_err(|_| format!("no descriptor: {from}"))?)
            {
                Some(open) => at = open.borrow().inode,
                None => return Ok(Target::Elsewhere),
            }
            path.to_owned()
        };
        if at == 0 && is_ignored(&inside) {
            return Ok(Target::Elsewhere);
        }
        let mut parts = Vec::new();
        for part in inside.components() {
            match part {
                std::path::Component::CurDir => {}
                std::path::Component::Normal(name) => parts.push(name.to_str().ok_or("a name that is not UTF-8")?),
                other => return Err(format!("a path with {other:?}")),
            }
        }
        let Some(name) = parts.pop() else {
            return Ok(if at == 0 {
                Target::Root
            } else {
                return Err("a path without a name".to_owned());
            });
        };
        for part in parts {
            at = self
                .disk
                .lookup(at, part)
                .ok_or_else(|| format!("{} lies in no directory that is known", path.display()))?;
        }
        Ok(Target::Place((at, name.into())))
    }

    fn place(&self, directory: Option<usize>, path: usize, call: &Call) -> Result<Option<Place>, String> {
        match self.target(directory, path, call)? {
            Target::Elsewhere => Ok(None),
            Target::Root => Err("the root itself is changed".to_owned()),
            Target::Place(place) => Ok(Some(place)),
        }
    }

    fn target_inode(&self, directory: Option<usize>, path: usize, call: &Call) -> Result<Option<Inode>, String> {
        match self.target(directory, path, call)? {
            Target::Elsewhere => Ok(None),
            Target::Root => Ok(Some(0)),
            Target::Place((parent, name)) => match self.disk.lookup(parent, &name) {
                Some(inode) => Ok(Some(inode)),
                None => Err(format!("{name} is not known")),
            },
        }
    }

    fn inode(&self, number: i64) -> Option<Inode> {
        self.open.get(&number).map(|open| open.borrow().inode)
    }

    fn new_inode(&mut self, place: &Place) -> Inode {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.name(inode, place);
        inode
    }

    fn name(&mut self, inode: Inode, (directory, name): &Place) {
        let path = self.paths.get(directory).cloned().unwrap_or_default().join(&**name);
        self.paths.insert(inode, path);
    }

    fn opened(
        &mut self,
        directory: Option<usize>,
        path: usize,
        flags: &str,
        result: i64,
        call: &Call,
    ) -> Result<(), String> {
        let has = |flag: &str| flags.split('|').any(|word| word == flag);
        let inode = match self.target(directory, path, call)? {
            Target::Elsewhere => {
                self.open.remove(&result);
                return Ok(());
            }
            Target::Root => 0,
            Target::Place(_) if has("O_TMPFILE") => return Err("a file without a name is not modelled".to_owned()),
            Target::Place(place) => match self.disk.lookup(place.0, &place.1) {
                Some(inode) => inode,
                None if has("O_CREAT") => {
                    let inode = self.new_inode(&place);
                    self.emit(Operation::Create { inode, place });
                    inode
                }
                None => return Err(format!("{} was opened and never created", place.1)),
            },
        };
        if has("O_TRUNC") && self.disk.data(inode).is_some_and(|data| !data.is_empty()) {
            self.emit(Operation::Truncate { inode, length: 0 });
        }
        let open = Open {
            inode,
            offset: 0,
            append: has("O_APPEND"),
        };
        self.open.insert(result, Rc::new(RefCell::new(open)));
        Ok(())
    }

    fn duplicated(&mut self, call: &Call, result: i64) -> Result<(), String> {
        match self.open.get(&descriptor(call, 0)?).map(Rc::clone) {
            Some(open) => self.open.insert(result, open),
            None => self.open.remove(&result),
        };
        Ok(())
    }

    fn length(&self, inode: Inode) -> usize {
        self.disk.data(inode).map_or(0, |data| data.len())
    }

    fn wrote(&mut self, call: &Call, at: Option<usize>) -> Result<(), String> {
        let Some(open) = self.open.get(&descriptor(call, 0)?).map(Rc::clone) else {
            return Ok(());
        };
        self.write_to(&open, at, written(call, 1)?.into());
        Ok(())
    }

    fn write_to(&mut self, open: &RefCell<Open>, at: Option<usize>, bytes: std::sync::Arc<[u8]>) {
        let mut open = open.borrow_mut();
        let offset = match at {
            Some(offset) => offset,
            None if open.append => self.length(open.inode),
            None => open.offset,
        };
        if at.is_none() {
            open.offset = offset + bytes.len();
        }
        let inode = open.inode;
        self.emit(Operation::Write { inode, offset, bytes });
    }

    fn copied(&mut self, from: i64, to: i64, offsets: [&str; 2], length: i64) -> Result<(), String> {
        let Some(to) = self.open.get(&to).map(Rc::clone) else {
            return Ok(());
        };
        if offsets.iter().any(|offset| *offset != "NULL") {
            return Err("a copy at an offset is not modelled".to_owned());
        }
        let from = self
            .open
            .get(&from)
            .map(Rc::clone)
            .ok_or("a copy of a file that is not known")?;
        let (inode, start) = (from.borrow().inode, from.borrow().offset);
        let end = start + length as usize;
        let data = self.disk.data(inode).ok_or("a copy of a directory")?;
        let bytes = data.get(start..end).ok_or("a copy of more than there is")?.into();
        from.borrow_mut().offset = end;
        self.write_to(&to, None, bytes);
        Ok(())
    }

    fn truncated(&mut self, inode: Option<Inode>, call: &Call) -> Result<(), String> {
        let length = call.arguments.get(1).and_then(Argument::number).ok_or("no length")? as usize;
        if let Some(inode) = inode {
            self.emit(Operation::Truncate { inode, length });
        }
        Ok(())
    }

    fn allocated(&mut self, call: &Call) -> Result<(), String> {
        let Some(inode) = self.inode(descriptor(call, 0)?) else {
            return Ok(());
        };
        let number = |index: usize| call.arguments.get(index).and_then(Argument::number);
        match (word(call, 1), number(2), number(3)) {
            ("0", Some(offset), Some(length)) => {
                let length = (offset + length) as usize;
                if length > self.length(inode) {
                    self.emit(Operation::Truncate { inode, length });
                }
                Ok(())
            }
            ("FALLOC_FL_KEEP_SIZE", ..) => Ok(()),
            (mode, ..) => Err(format!("fallocate with {mode} is not modelled")),
        }
    }

    fn renamed(&mut self, from: (Option<usize>, usize), to: (Option<usize>, usize), call: &Call) -> Result<(), String> {
        let flags = word(call, 4);
        match (self.place(from.0, from.1, call)?, self.place(to.0, to.1, call)?) {
            (None, None) => Ok(()),
            (Some(from), Some(to)) => {
                let known = |place: &Place| {
                    let inode = self.disk.lookup(place.0, &place.1);
                    inode.ok_or_else(|| format!("{} is renamed and not known", place.1))
                };
                let inode = known(&from)?;
                if flags.contains("RENAME_EXCHANGE") {
                    let other = known(&to)?;
                    self.name(inode, &to);
                    self.name(other, &from);
                    self.emit(Operation::Exchange {
                        places: [(from, inode), (to, other)],
                    });
                } else if self.disk.lookup(to.0, &to.1) != Some(inode) {
                    self.name(inode, &to);
                    self.emit(Operation::Rename { inode, from, to });
                }
                Ok(())
            }
            (from, to) => Err(format!("a rename over the border of the root: {from:?} to {to:?}")),
        }
    }

    fn linked(&mut self, from: (Option<usize>, usize), to: (Option<usize>, usize), call: &Call) -> Result<(), String> {
        let Some(place) = self.place(to.0, to.1, call)? else {
            return Ok(());
        };
        let inode = self
            .target_inode(from.0, from.1, call)?
            .ok_or("a link over the border of the root")?;
        self.name(inode, &place);
        self.emit(Operation::Link { inode, place });
        Ok(())
    }

    fn removed(&mut self, directory: Option<usize>, path: usize, call: &Call) -> Result<(), String> {
        if let Some(place) = self.place(directory, path, call)? {
            self.emit(Operation::Remove { place });
        }
        Ok(())
    }

    fn made(&mut self, directory: Option<usize>, path: usize, call: &Call) -> Result<(), String> {
        if let Some(place) = self.place(directory, path, call)? {
            let inode = self.new_inode(&place);
            self.emit(Operation::MakeDirectory { inode, place });
        }
        Ok(())
    }

    fn never(&self, directory: Option<usize>, path: usize, call: &Call) -> Result<(), String> {
        match self.place(directory, path, call)? {
            Some((_, name)) => Err(format!("{name} is made by a call that is not modelled")),
            None => Ok(()),
        }
    }
}

/// Compares the end of the log with what really lies at `root`, byte by byte: the log has missed nothing.
pub(crate) fn compare_with_reality(log: &Log, root: &Path) -> Result<usize, String> {
    let mut dice = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(0);
    let told = log.end.cut(Fate::Kept, &mut dice).entries;
    let mut real = std::collections::BTreeMap::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let entries = std::fs::read_dir(root.join(&directory)).map_err(|error| error.to_string())?;
        for entry in entries.flatten() {
            let path = directory.join(entry.file_name());
            if is_ignored(&path) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                real.insert(path.clone(), Entry::Directory);
                directories.push(path);
            } else {
                let data = std::fs::read(entry.path()).map_err(|error| error.to_string())?;
                real.insert(path, Entry::File(std::sync::Arc::new(data)));
            }
        }
    }
    for path in real.keys().chain(told.keys()) {
        if real.get(path) != told.get(path) {
            let say = |entry: Option<&Entry>| match entry {
                None => "nothing".to_owned(),
                Some(Entry::Directory) => "a directory".to_owned(),
                Some(Entry::File(data)) => format!("a file of {} bytes", data.len()),
            };
            return Err(format!(
                "{} is {} and by the record {}",
                path.display(),
                say(real.get(path)),
                say(told.get(path))
            ));
        }
    }
    Ok(real.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strace::parse;

    /// Strings in plain quotes become those of `strace -xx`.
    fn record(lines: &[&str]) -> String {
        let mut record = String::new();
        for line in lines {
            for (index, part) in line.split('"').enumerate() {
                if index % 2 == 0 {
                    record.push_str(part);
                } else {
                    let escaped: String = part.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
                    record.push_str(&format!("\"{escaped}\""));
                }
            }
            record.push('\n');
        }
        record
    }

    fn log(lines: &[&str]) -> Result<Log, String> {
        translate(&parse(&record(lines))?, Path::new("/disk"))
    }

    fn image(log: &Log, fate: Fate) -> Vec<String> {
        let mut dice = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(0);
        let entries = log.end.cut(fate, &mut dice).entries.into_iter();
        entries
            .map(|(path, entry)| match entry {
                Entry::Directory => path.display().to_string(),
                Entry::File(data) => format!("{}={}", path.display(), String::from_utf8_lossy(&data)),
            })
            .collect()
    }

    #[test]
    fn a_commit_becomes_steps_of_the_disk() {
        let log = log(&[
            r#"1 mkdir("/disk/home", 0700) = 0"#,
            r#"1 openat(AT_FDCWD, "/disk/home/.tmp", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0666) = 5"#,
            r#"1 openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 6"#,
            r#"2 write(5, "da", 2 <unfinished ...>"#,
            r#"1 close(6) = 0"#,
            r#"2 <... write resumed>) = 2"#,
            r#"2 write(5, "ta", 2) = 2"#,
            r#"1 fsync(5) = 0"#,
            r#"1 close(5) = 0"#,
            r#"1 renameat(AT_FDCWD, "/disk/home/.tmp", AT_FDCWD, "/disk/home/a") = 0"#,
            r#"1 openat(AT_FDCWD, "/disk/home", O_RDONLY|O_CLOEXEC) = 5"#,
            r#"1 fsync(5) = 0"#,
            r#"1 openat(AT_FDCWD, "/disk", O_RDONLY|O_CLOEXEC) = 6"#,
            r#"1 fsync(6) = 0"#,
            r#"1 unlinkat(5, "b", 0) = -1 ENOENT (No such file or directory)"#,
        ])
        .unwrap();
        assert_eq!(image(&log, Fate::Lost), ["home", "home/a=data"]);
        assert_eq!(image(&log, Fate::Kept), ["home", "home/a=data"]);
    }

    #[test]
    fn an_answer_counts_from_where_its_call_began() {
        let log = log(&[
            r#"1 mkdir("/disk/home", 0700) = 0"#,
            r#"1 sendto(9, "{'id':'w7','result':{}}", 23, MSG_NOSIGNAL, NULL, 0) = 23"#,
            r#"1 write(4, "x", 1) = 1"#,
        ])
        .unwrap();
        assert!(
            !log.operations
                .iter()
                .any(|step| matches!(step, Operation::Acknowledged { .. })),
            "no JSON"
        );

        let answer = "7b226964223a227737222c22726573756c74223a7b7d7d0a";
        let answer: String = answer
            .as_bytes()
            .chunks(2)
            .map(|pair| format!("\\x{}", std::str::from_utf8(pair).unwrap()))
            .collect();
        let lines = format!(
            "1 sendto(9, \"{answer}\", 24, MSG_NOSIGNAL, NULL, 0 <unfinished ...>\n2 mkdir(\"{}\", 0700) = 0\n1 <... sendto resumed>) = 24\n",
            "/disk/home"
                .bytes()
                .map(|byte| format!("\\x{byte:02x}"))
                .collect::<String>()
        );
        let log = translate(&parse(&lines).unwrap(), Path::new("/disk")).unwrap();
        assert_eq!(log.operations[0], Operation::Acknowledged { id: "w7".to_owned() });
        assert_eq!(log.operations.len(), 2);
    }

    #[test]
    fn relative_paths_links_copies_and_offsets() {
        let log = log(&[
            r#"1 mkdir("/disk/d", 0700) = 0"#,
            r#"1 openat(AT_FDCWD, "/disk/d", O_RDONLY|O_DIRECTORY) = 3"#,
            r#"1 openat(3, "one", O_RDWR|O_CREAT, 0600) = 4"#,
            r#"1 pwrite64(4, "world", 5, 6) = 5"#,
            r#"1 pwrite64(4, "hello ", 6, 0) = 6"#,
            r#"1 fcntl(4, F_DUPFD_CLOEXEC, 3) = 7"#,
            r#"1 close(4) = 0"#,
            r#"1 openat(3, "two", O_WRONLY|O_CREAT|O_TRUNC, 0600) = 4"#,
            r#"1 copy_file_range(7, NULL, 4, NULL, 1073741824, 0) = 11"#,
            r#"1 write(4, "!", 1) = 1"#,
            r#"1 linkat(3, "two", 3, "three", 0) = 0"#,
            r#"1 unlinkat(3, "two", 0) = 0"#,
            r#"1 ftruncate(7, 5) = 0"#,
        ])
        .unwrap();
        assert_eq!(image(&log, Fate::Kept), ["d", "d/one=hello", "d/three=hello world!"]);
        assert_eq!(image(&log, Fate::Lost), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_modelled_is_refused() {
        for lines in [
            vec![r#"1 openat(AT_FDCWD, "/disk/ghost", O_RDONLY) = 3"#],
            vec![r#"1 symlink("/disk/a", "/disk/b") = 0"#],
            vec![r#"1 rename("/disk/a", "/elsewhere") = 0"#],
            vec!["1 sync() = 0"],
        ] {
            assert!(log(&lines).is_err(), "{lines:?}");
        }
    }
}
