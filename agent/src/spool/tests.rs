use super::*;
use adaptis_proto::sample::Record;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

fn batch(ring: u64, first: u64, length: u64) -> Batch {
    // Words of full width, so that frames have a size worth counting.
    let records = (first..first + length).map(|number| Record([!number; Record::WORDS])).collect();
    Batch { device: "gpu0".into(), ring: Incarnation(ring), first, records, dropped: 3, clock: None }
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    paths.retain(|path| Segment::number_of(path).is_some());
    paths.sort();
    paths
}

fn append(spool: &mut Spool, batch: &Batch) -> Vec<SpooledRange> {
    let (evicted, result) = spool.append(batch);
    result.unwrap();
    evicted
}

#[test]
fn a_file_in_the_place_of_the_folder_is_told_as_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Spool::open(file.path(), 1 << 20).err().expect("no folder").to_string();
    assert!(error.contains("the spool") && error.contains("not a directory"), "{error}");
}

#[test]
fn batches_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    let batches = [batch(1, 0, 10), batch(1, 10, 5), batch(2, 0, 7)];
    assert!(batches.iter().all(|batch| append(&mut spool, batch).is_empty()));
    drop(spool);
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_eq!(spool.ranges(), batches.each_ref().map(range_of));
    assert_eq!(spool.read(Incarnation(1), 12), Some(batches[1].clone()));
    assert_eq!(spool.read(Incarnation(2), 0), Some(batches[2].clone()));
    assert_eq!(spool.read(Incarnation(2), 7), None);
    spool.release(Incarnation(1), 14);
    assert_eq!(spool.ranges(), [range_of(&batches[1]), range_of(&batches[2])], "half a batch is kept whole");
    append(&mut spool, &batch(2, 7, 1));
    assert_eq!(segments(folder.path()).len(), 2, "a new process writes a file of its own");
    spool.release(Incarnation(1), 15);
    spool.release(Incarnation(2), 8);
    assert!(spool.ranges().is_empty() && segments(folder.path()).is_empty() && spool.bytes() == 0);
    append(&mut spool, &batch(2, 8, 1));
    assert_eq!(spool.ranges().len(), 1, "an emptied spool goes on");
}

#[test]
fn a_torn_tail_costs_no_more_than_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    (0..4).for_each(|at| assert!(append(&mut spool, &batch(1, at * 10, 10)).is_empty()));
    drop(spool);
    let path = &segments(folder.path())[0];
    let whole = std::fs::read(path).unwrap();
    for cut in [1, 7, whole.len() / 8, whole.len() / 4 - 1] {
        std::fs::write(path, &whole[..whole.len() - cut]).unwrap();
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((spool.ranges().len(), spool.torn), (3, 1), "{cut} bytes are missing");
    }
    std::fs::write(path, [&whole[..], &[0xff; 64]].concat()).unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_eq!((spool.ranges().len(), spool.torn), (4, 1), "rubbish behind the last frame");
    append(&mut spool, &batch(1, 40, 10));
    drop(spool);
    assert_eq!(Spool::open(folder.path(), 1 << 20).unwrap().ranges().len(), 5);
}

#[test]
fn a_damaged_batch_is_not_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    (0..3).for_each(|at| assert!(append(&mut spool, &batch(1, at * 10, 10)).is_empty()));
    let path = &segments(folder.path())[0];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let third = std::fs::metadata(path).unwrap().len() / 3;
    file.write_all_at(&[0; 16], third + 20).unwrap();
    assert_eq!(spool.read(Incarnation(1), 15), None);
    assert_eq!(spool.ranges().len(), 2, "it is forgotten");
    assert_eq!(spool.read(Incarnation(1), 25), Some(batch(1, 20, 10)));
}

#[test]
fn a_full_spool_lets_the_oldest_go_and_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let one = segment::frame_bytes(&wire::encode(&batch(1, 1_000, 10)));
    let bytes_max = one * 40;
    let mut spool = Spool::open(folder.path(), bytes_max).unwrap();
    let mut evicted = Vec::new();
    for at in 0..200 {
        evicted.extend(append(&mut spool, &batch(1, at * 10, 10)));
        assert!(spool.bytes() <= bytes_max);
        let on_disk: u64 = segments(folder.path()).iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
        assert_eq!(on_disk, spool.bytes());
    }
    assert!(spool.ranges().len() >= 36, "{}", spool.ranges().len());
    let all: Vec<_> = evicted.into_iter().chain(spool.ranges()).collect();
    assert_eq!(all, (0..200).map(|at| range_of(&batch(1, at * 10, 10))).collect::<Vec<_>>());
}

#[test]
fn what_cannot_be_written_is_an_error_and_leaves_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 600).unwrap();
    append(&mut spool, &batch(1, 0, 2));
    let (evicted, result) = spool.append(&batch(1, 2, 100));
    assert!(evicted.is_empty() && result.is_err(), "larger than the whole spool");
    assert_eq!(spool.ranges().len(), 1);

    // A folder that is gone: neither file nor folder can be made.
    let gone = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(&gone.path().join("spool"), 1 << 20).unwrap();
    std::fs::remove_dir_all(gone.path()).unwrap();
    let (evicted, result) = spool.append(&batch(1, 0, 2));
    assert!(evicted.is_empty() && result.is_err());
    assert!(spool.ranges().is_empty());
}

#[test]
fn a_folder_has_one_agent() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert!(matches!(Spool::open(folder.path(), 1 << 20), Err(AgentError::SpoolInUse { .. })));
    drop(spool);
    assert!(Spool::open(folder.path(), 1 << 20).is_ok());
}
