//! backup_label and backup history files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::BackupLabel;
use pgmahout_types::backup_label::BackupHistory;

fuzz_target!(|content: &[u8]| {
    if let Ok(label) = BackupLabel::parse(content) {
        // Carriage returns in texts become blanks, so the text settles after one round.
        let settled = BackupLabel::parse(label.render().as_bytes()).expect("our own text");
        assert_eq!(
            (settled.start, settled.checkpoint),
            (label.start, label.checkpoint)
        );
        assert_eq!(BackupLabel::parse(settled.render().as_bytes()), Ok(settled));
    }
    if let Ok(history) = BackupHistory::parse(content) {
        let settled = BackupHistory::parse(history.render().as_bytes()).expect("our own text");
        assert_eq!(settled.end.stop, history.end.stop);
        assert_eq!(BackupHistory::parse(settled.render().as_bytes()), Ok(settled));
    }
});
