//! A disk that keeps only what was synced: a program that runs on it can lose its power at any instant.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::folder::Folder;
use crate::random::Random;

/// What is preloaded into the program.
const FORGETFUL: &str = include_str!("disk/forgetful.c");
const LIBRARY: &str = "forgetful.so";
/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// A folder whose files lose what was not synced when the power goes.
#[derive(Debug)]
pub struct Disk {
    folder: Folder,
    sync_us: u32,
}

/// What becomes of writes that were not synced.
#[derive(Debug)]
pub enum Unsynced<'r> {
    /// None of them has reached the disk.
    Lost,
    /// A disk orders what it was not told to order: each sector is there or not.
    Some(&'r mut Random),
}

/// What a power cut came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Files that the program had and that are other ones now, or none.
    pub files: usize,
    /// Bytes in which they differ, where both have some.
    pub bytes: usize,
}

/// A name in a synced list.
struct Name {
    is_folder: bool,
    inode: u64,
    name: String,
}

impl Disk {
    /// An empty disk whose every sync takes at least so many microseconds.
    ///
    /// # Errors
    /// When there is no C compiler, or the folder cannot be made.
    pub fn new(sync_us: u32) -> Result<Self> {
        let disk = Self { folder: Folder::new("disk")?, sync_us };
        compile(disk.folder.path())?;
        fs::create_dir(disk.root())?;
        disk.take_image()?;
        Ok(disk)
    }

    /// Where the program keeps its files.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.real().join("root")
    }

    fn image(&self) -> PathBuf {
        self.real().join("image")
    }

    /// The folder without links on the way: the kernel tells the program real paths.
    fn real(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap_or_else(|_| self.folder.path().to_owned())
    }

    /// What the environment of a program must say, so that it runs on this disk.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, OsString); 4] {
        [
            ("LD_PRELOAD", self.real().join(LIBRARY).into()),
            ("FORGETFUL_ROOT", self.root().into()),
            ("FORGETFUL_IMAGE", self.image().into()),
            ("FORGETFUL_SYNC_US", self.sync_us.to_string().into()),
        ]
    }

    /// The power is gone, and comes back. The program that ran must have been killed before.
    ///
    /// # Errors
    /// When the folder cannot be made anew.
    pub fn lose_power(&mut self, mut unsynced: Unsynced<'_>) -> Result<Cut> {
        let (root, next) = (self.root(), self.real().join("next"));
        let mut live = BTreeMap::new();
        walk(&root, &mut |path, inode| {
            live.insert(inode, path.to_owned());
            Ok(())
        })?;
        let mut cut = Cut::default();
        self.restore(fs::metadata(&root)?.ino(), &next, &mut live, &mut unsynced, &mut cut)?;
        // What has no synced name is gone whole; an index of a log is made anew at every start.
        cut.files += live.values().filter(|path| path.is_file() && !is_index(path)).count();
        fs::remove_dir_all(&root)?;
        fs::rename(&next, &root)?;
        self.take_image()?;
        Ok(cut)
    }

    fn restore(
        &self,
        folder: u64,
        into: &Path,
        live: &mut BTreeMap<u64, PathBuf>,
        unsynced: &mut Unsynced<'_>,
        cut: &mut Cut,
    ) -> Result<()> {
        fs::create_dir(into)?;
        for name in self.synced_names(folder)? {
            let path = into.join(&name.name);
            let real = live.remove(&name.inode);
            if name.is_folder {
                self.restore(name.inode, &path, live, unsynced, cut)?;
                continue;
            }
            if is_index(&path) {
                continue;
            }
            let mut bytes = read_or_empty(&self.image().join("files").join(name.inode.to_string()))?;
            if let Some(real) = real {
                let written = fs::read(&real)?;
                let differing = differing(&bytes, &written);
                cut.files += usize::from(differing > 0 || bytes.len() != written.len());
                cut.bytes += differing;
                if let Unsynced::Some(random) = unsynced {
                    keep_some(&mut bytes, &written, random);
                }
            }
            fs::write(&path, bytes)?;
        }
        Ok(())
    }

    fn synced_names(&self, folder: u64) -> Result<Vec<Name>> {
        let list = read_or_empty(&self.image().join("folders").join(folder.to_string()))?;
        let list = String::from_utf8(list).context("a file name is no UTF-8")?;
        list.lines().map(|line| Name::parse(line).context("a list of names is damaged")).collect()
    }

    /// Whatever is there now counts as synced.
    fn take_image(&self) -> Result<()> {
        let image = self.image();
        if image.exists() {
            fs::remove_dir_all(&image)?;
        }
        fs::create_dir_all(image.join("files"))?;
        fs::create_dir_all(image.join("folders"))?;
        let root = self.root();
        let list_of = |folder: &Path| -> Result<()> {
            let inode = fs::metadata(folder)?.ino();
            Ok(fs::write(image.join("folders").join(inode.to_string()), list(folder)?)?)
        };
        list_of(&root)?;
        walk(&root, &mut |path, inode| {
            if path.is_dir() {
                return list_of(path);
            }
            fs::copy(path, image.join("files").join(inode.to_string()))?;
            Ok(())
        })
    }
}

impl Name {
    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        let (inode, name) = rest.split_once(' ')?;
        Some(Self { is_folder: kind == "d", inode: inode.parse().ok()?, name: name.to_owned() })
    }
}

fn list(folder: &Path) -> Result<String> {
    let mut list = String::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = if entry.file_type()?.is_dir() { 'd' } else { 'f' };
        list.push_str(&format!("{kind} {} {}\n", entry.metadata()?.ino(), entry.file_name().to_string_lossy()));
    }
    Ok(list)
}

/// Shows every file and folder below a folder, with its inode number.
fn walk(folder: &Path, each: &mut impl FnMut(&Path, u64) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        each(&entry.path(), entry.metadata()?.ino())?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), each)?;
        }
    }
    Ok(())
}

fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with("-shm")
}

fn read_or_empty(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.with_context(|| format!("cannot read {}", path.display())),
    }
}

fn differing(synced: &[u8], written: &[u8]) -> usize {
    synced.iter().zip(written).filter(|(synced, written)| synced != written).count()
        + written.len().saturating_sub(synced.len())
}

/// Lets about half of the sectors that were written and not synced reach the disk after all.
fn keep_some(synced: &mut Vec<u8>, written: &[u8], random: &mut Random) {
    synced.resize(written.len(), 0);
    for (synced, written) in synced.chunks_mut(SECTOR).zip(written.chunks(SECTOR)) {
        if synced != written && random.below(2) == 0 {
            synced.copy_from_slice(written);
        }
    }
}

/// Compiles what is preloaded.
fn compile(folder: &Path) -> Result<()> {
    let source = folder.join("forgetful.c");
    fs::write(&source, FORGETFUL)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-pthread", "-o"]);
    let output = compiler.arg(folder.join(LIBRARY)).arg(&source).output().context("no C compiler `cc`")?;
    if !output.status.success() {
        bail!("cannot compile the forgetful disk: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
