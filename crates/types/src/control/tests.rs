use proptest::prelude::*;

use super::layout::Format;
use super::*;

/// Writes the structure as the server would, apart from any code that reads it: members at offsets that
/// were counted by hand from the C declarations.
fn encode(control: &ControlFile) -> Vec<u8> {
    let format = match control.control_version {
        1300 => Format::V1300,
        1700 => Format::V1700,
        _ => Format::V1800,
    };
    let mut bytes = vec![0; ControlFile::FILE_SIZE];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    let lsn = |lsn: Option<Lsn>| lsn.unwrap_or_default().as_u64().to_le_bytes();
    let level = |level: WalLevel| match level {
        WalLevel::Minimal => 0_u32,
        WalLevel::Replica => 1,
        WalLevel::Logical => 2,
    };
    let state: u32 = match control.state {
        ClusterState::StartingUp => 0,
        ClusterState::ShutDown => 1,
        ClusterState::ShutDownInRecovery => 2,
        ClusterState::ShuttingDown => 3,
        ClusterState::InCrashRecovery => 4,
        ClusterState::InArchiveRecovery => 5,
        ClusterState::InProduction => 6,
    };
    put(0, &control.system_identifier.get().to_le_bytes());
    put(8, &control.control_version.to_le_bytes());
    put(12, &control.catalog_version.to_le_bytes());
    put(16, &state.to_le_bytes());
    put(24, &control.modified.seconds().to_le_bytes());
    put(32, &lsn(Some(control.checkpoint_location)));

    let checkpoint = &control.checkpoint;
    put(40, &lsn(Some(checkpoint.redo)));
    put(48, &checkpoint.timeline.get().to_le_bytes());
    put(52, &checkpoint.previous_timeline.get().to_le_bytes());
    put(56, &[u8::from(checkpoint.full_page_writes)]);
    if let Some(wal_level) = checkpoint.wal_level {
        put(60, &level(wal_level).to_le_bytes());
    }
    put(64, &checkpoint.next_transaction.get().to_le_bytes());
    for (index, value) in [
        checkpoint.next_oid,
        checkpoint.next_multixact,
        checkpoint.next_multixact_offset,
        checkpoint.oldest_transaction,
        checkpoint.oldest_transaction_database,
        checkpoint.oldest_multixact,
        checkpoint.oldest_multixact_database,
    ]
    .into_iter()
    .enumerate()
    {
        put(72 + 4 * index, &value.to_le_bytes());
    }
    put(104, &checkpoint.time.seconds().to_le_bytes());
    put(
        112,
        &checkpoint
            .oldest_commit_timestamp_transaction
            .unwrap_or(0)
            .to_le_bytes(),
    );
    put(
        116,
        &checkpoint
            .newest_commit_timestamp_transaction
            .unwrap_or(0)
            .to_le_bytes(),
    );
    put(
        120,
        &checkpoint.oldest_active_transaction.unwrap_or(0).to_le_bytes(),
    );

    put(128, &lsn(Some(control.unlogged_lsn)));
    put(136, &lsn(control.min_recovery.map(|point| point.lsn)));
    let timeline = control.min_recovery.and_then(|point| point.timeline);
    put(144, &timeline.map_or(0, TimelineId::get).to_le_bytes());
    put(152, &lsn(control.backup_start));
    put(160, &lsn(control.backup_end));
    put(168, &[u8::from(control.backup_end_required)]);
    put(172, &level(control.wal_level).to_le_bytes());
    put(176, &[u8::from(control.wal_log_hints)]);
    put(180, &control.max_connections.to_le_bytes());
    put(184, &control.max_worker_processes.to_le_bytes());
    put(188, &control.max_wal_senders.to_le_bytes());
    put(192, &control.max_prepared_transactions.to_le_bytes());
    put(196, &control.max_locks_per_transaction.to_le_bytes());
    put(200, &[u8::from(control.track_commit_timestamp)]);
    put(204, &control.maximum_alignment.to_le_bytes());
    put(208, &1_234_567.0_f64.to_le_bytes());
    put(216, &control.block_size.to_le_bytes());
    put(220, &control.relation_segment_blocks.to_le_bytes());
    put(224, &control.wal_block_size.to_le_bytes());
    put(
        228,
        &u32::try_from(control.wal_segment_size.bytes())
            .expect("at most 1 GiB")
            .to_le_bytes(),
    );
    put(232, &control.name_data_length.to_le_bytes());
    put(236, &control.max_index_keys.to_le_bytes());
    put(240, &control.toast_chunk_size.to_le_bytes());
    put(244, &control.large_object_chunk_size.to_le_bytes());
    put(248, &[u8::from(control.float8_by_value)]);
    put(252, &control.data_checksums.version().to_le_bytes());
    if let Some(signed) = control.default_char_signed {
        put(256, &[u8::from(signed)]);
        put(257, &control.mock_authentication_nonce);
    } else {
        put(256, &control.mock_authentication_nonce);
    }
    seal(&mut bytes, format);
    bytes
}

/// Makes the checksum right for whatever the bytes say.
fn seal(bytes: &mut [u8], format: Format) {
    let offset = format.checksum_offset();
    let checksum = crc32c::crc32c(&bytes[..offset]);
    bytes[offset..offset + 4].copy_from_slice(&checksum.to_le_bytes());
}

fn any_timeline() -> impl Strategy<Value = TimelineId> {
    (1..=u32::MAX).prop_map(|number| TimelineId::new(number).expect("not zero"))
}

fn any_position() -> impl Strategy<Value = Option<Lsn>> {
    prop_oneof![Just(None), (1..=u64::MAX).prop_map(|bytes| Some(Lsn::new(bytes)))]
}

fn any_transaction() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![Just(None), (1..=u32::MAX).prop_map(Some)]
}

fn any_wal_level() -> impl Strategy<Value = WalLevel> {
    prop_oneof![
        Just(WalLevel::Minimal),
        Just(WalLevel::Replica),
        Just(WalLevel::Logical)
    ]
}

fn any_checkpoint() -> impl Strategy<Value = Checkpoint> {
    (
        (
            any::<u64>(),
            any_timeline(),
            any_timeline(),
            any::<bool>(),
            any_wal_level(),
        ),
        (any::<u64>(), any::<[u32; 7]>(), any::<i64>()),
        (any_transaction(), any_transaction(), any_transaction()),
    )
        .prop_map(|(head, (next_transaction, numbers, time), commits)| Checkpoint {
            redo: Lsn::new(head.0),
            timeline: head.1,
            previous_timeline: head.2,
            full_page_writes: head.3,
            wal_level: Some(head.4),
            next_transaction: FullTransactionId::new(next_transaction),
            next_oid: numbers[0],
            next_multixact: numbers[1],
            next_multixact_offset: numbers[2],
            oldest_transaction: numbers[3],
            oldest_transaction_database: numbers[4],
            oldest_multixact: numbers[5],
            oldest_multixact_database: numbers[6],
            time: UnixTime::new(time),
            oldest_commit_timestamp_transaction: commits.0,
            newest_commit_timestamp_transaction: commits.1,
            oldest_active_transaction: commits.2,
        })
}

prop_compose! {
    fn any_control_file()(
        version in prop_oneof![Just(1300_u32), Just(1700), Just(1800)],
        (system_identifier, catalog_version, modified, location, unlogged) in any::<(u64, u32, i64, u64, u64)>(),
        state in 0_u32..=6,
        mut checkpoint in any_checkpoint(),
        (minimum, minimum_timeline) in (any_position(), proptest::option::of(any_timeline())),
        (backup_start, backup_end) in (any_position(), any_position()),
        flags in any::<[bool; 5]>(),
        wal_level in any_wal_level(),
        settings in proptest::array::uniform5(0_u32..=i32::MAX as u32),
        numbers in any::<[u32; 7]>(),
        (shift, checksums) in (20_u32..=30, any::<u32>()),
        nonce: [u8; 32],
    ) -> ControlFile {
        if version < 1700 {
            checkpoint.wal_level = None;
        }
        ControlFile {
            system_identifier: SystemIdentifier::new(system_identifier),
            control_version: version,
            catalog_version,
            state: ClusterState::from_number(state).expect("in range"),
            modified: UnixTime::new(modified),
            checkpoint_location: Lsn::new(location),
            checkpoint,
            unlogged_lsn: Lsn::new(unlogged),
            min_recovery: minimum.map(|lsn| MinRecoveryPoint { lsn, timeline: minimum_timeline }),
            backup_start,
            backup_end,
            backup_end_required: flags[0],
            wal_level,
            wal_log_hints: flags[1],
            max_connections: settings[0],
            max_worker_processes: settings[1],
            max_wal_senders: settings[2],
            max_prepared_transactions: settings[3],
            max_locks_per_transaction: settings[4],
            track_commit_timestamp: flags[2],
            maximum_alignment: 8,
            block_size: numbers[0],
            relation_segment_blocks: numbers[1],
            wal_block_size: numbers[2],
            wal_segment_size: SegmentSize::new(1 << shift).expect("a power of two in range"),
            name_data_length: numbers[3],
            max_index_keys: numbers[4],
            toast_chunk_size: numbers[5],
            large_object_chunk_size: numbers[6],
            float8_by_value: flags[3],
            data_checksums: if checksums == 0 { DataChecksums::Off } else { DataChecksums::Version(checksums) },
            default_char_signed: (version >= 1800).then_some(flags[4]),
            mock_authentication_nonce: nonce,
        }
    }
}

/// One file that every server could have written, for tests that damage it.
fn sample(version: u32) -> ControlFile {
    let mut checkpoint = Checkpoint {
        redo: Lsn::new(0x300_0028),
        timeline: TimelineId::FIRST,
        previous_timeline: TimelineId::FIRST,
        full_page_writes: true,
        wal_level: Some(WalLevel::Replica),
        next_transaction: FullTransactionId::new(0x2_0000_02EE),
        next_oid: 16_384,
        next_multixact: 1,
        next_multixact_offset: 0,
        oldest_transaction: 722,
        oldest_transaction_database: 1,
        oldest_multixact: 1,
        oldest_multixact_database: 1,
        time: UnixTime::new(1_700_000_000),
        oldest_commit_timestamp_transaction: None,
        newest_commit_timestamp_transaction: None,
        oldest_active_transaction: Some(750),
    };
    if version < 1700 {
        checkpoint.wal_level = None;
    }
    ControlFile {
        system_identifier: SystemIdentifier::new(7_383_921_345_678_901_234),
        control_version: version,
        catalog_version: 202_209_061,
        state: ClusterState::InProduction,
        modified: UnixTime::new(1_700_000_001),
        checkpoint_location: Lsn::new(0x300_0060),
        checkpoint,
        unlogged_lsn: Lsn::new(1000),
        min_recovery: None,
        backup_start: None,
        backup_end: None,
        backup_end_required: false,
        wal_level: WalLevel::Replica,
        wal_log_hints: false,
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        track_commit_timestamp: false,
        maximum_alignment: 8,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        wal_block_size: 8192,
        wal_segment_size: SegmentSize::DEFAULT,
        name_data_length: 64,
        max_index_keys: 32,
        toast_chunk_size: 1996,
        large_object_chunk_size: 2048,
        float8_by_value: true,
        data_checksums: DataChecksums::Version(1),
        default_char_signed: (version >= 1800).then_some(true),
        mock_authentication_nonce: [7; 32],
    }
}

#[test]
fn a_file_without_its_checkpoint_is_otherwise_the_same() {
    for version in [1300, 1700, 1800] {
        let control = sample(version);
        let bytes = ControlFile::without_checkpoint(&encode(&control)).expect("a whole one");
        let changed = ControlFile::parse(&bytes).expect("its checksum is right");
        // No segment of any size has number 0, and the place is one where a record could begin.
        assert!(changed.checkpoint_location.as_u64() < SegmentSize::MIN.bytes());
        assert!(changed.checkpoint_location.as_u64() % 8192 >= 24);
        let checkpoint_location = control.checkpoint_location;
        assert_eq!(
            ControlFile {
                checkpoint_location,
                ..changed
            },
            control
        );
    }
    assert!(ControlFile::without_checkpoint(&[0; 100]).is_err());
}

#[test]
fn a_truncated_file_of_any_length_is_refused() {
    let bytes = encode(&sample(1800));
    for length in 0..bytes.len() {
        assert_eq!(
            ControlFile::parse(&bytes[..length]),
            Err(ControlFileError::Truncated { length })
        );
    }
}

#[test]
fn every_flipped_bit_up_to_the_checksum_is_noticed() {
    for (version, format) in [
        (1300, Format::V1300),
        (1700, Format::V1700),
        (1800, Format::V1800),
    ] {
        let bytes = encode(&sample(version));
        for bit in 0..(format.checksum_offset() + 4) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = ControlFile::parse(&damaged).expect_err("damaged");
            if (8..12).contains(&(bit / 8)) {
                assert!(
                    matches!(
                        error,
                        ControlFileError::Version { .. } | ControlFileError::ByteOrder
                    ),
                    "bit {bit}: {error}"
                );
            } else {
                assert!(
                    matches!(error, ControlFileError::Checksum { .. }),
                    "bit {bit}: {error}"
                );
            }
            assert!(error.hint().is_some());
        }
    }
}

#[test]
fn a_file_of_the_other_byte_order_is_named_as_such() {
    let mut bytes = encode(&sample(1300));
    bytes[8..12].copy_from_slice(&1300_u32.to_be_bytes());
    assert_eq!(ControlFile::parse(&bytes), Err(ControlFileError::ByteOrder));
}

#[test]
fn an_unknown_format_is_refused_with_its_number() {
    let mut bytes = encode(&sample(1800));
    bytes[8..12].copy_from_slice(&1902_u32.to_le_bytes());
    let error = ControlFile::parse(&bytes).expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "pg_control has format version 1902, which is unknown"
    );
    bytes[8..12].fill(0);
    assert_eq!(
        ControlFile::parse(&bytes),
        Err(ControlFileError::Version { version: 0 })
    );
}

#[test]
fn impossible_values_under_a_right_checksum_are_refused() {
    let cases: [(usize, &[u8], &str); 11] = [
        (16, &7_u32.to_le_bytes(), "state"),
        (48, &0_u32.to_le_bytes(), "checkPointCopy.ThisTimeLineID"),
        (52, &0_u32.to_le_bytes(), "checkPointCopy.PrevTimeLineID"),
        (56, &[2], "checkPointCopy.fullPageWrites"),
        (60, &3_u32.to_le_bytes(), "wal_level"),
        (172, &u32::MAX.to_le_bytes(), "wal_level"),
        (180, &(-1_i32).to_le_bytes(), "MaxConnections"),
        (204, &4_u32.to_le_bytes(), "maxAlign"),
        (208, &1_234_568.0_f64.to_le_bytes(), "floatFormat"),
        (228, &0_u32.to_le_bytes(), "xlog_seg_size"),
        (256, &[0xFF], "default_char_signedness"),
    ];
    for (offset, value, expected) in cases {
        let mut bytes = encode(&sample(1800));
        bytes[offset..offset + value.len()].copy_from_slice(value);
        seal(&mut bytes, Format::V1800);
        match ControlFile::parse(&bytes) {
            Err(ControlFileError::Value { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn catalog_versions_tell_the_major_version() {
    let mut control = sample(1300);
    assert_eq!(control.major(), Some(15));
    control.catalog_version = 202_506_291;
    assert_eq!(control.major(), Some(18));
    control.catalog_version = 202_611_211;
    assert_eq!(control.major(), None);
}

proptest! {
    #[test]
    fn what_a_server_writes_is_read_back(control in any_control_file()) {
        prop_assert_eq!(ControlFile::parse(&encode(&control)), Ok(control));
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), version in 0_usize..4, padded: bool, sealed: bool) {
        if padded {
            bytes.resize(ControlFile::FILE_SIZE, 0);
            let (version, format) =
                [(1300_u32, Format::V1300), (1700, Format::V1700), (1800, Format::V1800), (0, Format::V1800)][version];
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            if sealed {
                seal(&mut bytes, format);
            }
        }
        let _ = ControlFile::parse(&bytes);
    }
}
