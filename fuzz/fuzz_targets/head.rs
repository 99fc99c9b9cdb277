//! The small JSON objects of a repository: heads, condemned lists, stanzas, headers of WAL objects.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use pgmahout_types::repository::head::Clearance;
use pgmahout_types::repository::{CondemnedObjects, Head, StanzaInfo, WalObjectHeader};

fuzz_target!(|content: &[u8]| {
    if let Ok(mut head) = Head::decode(content) {
        assert_eq!(Head::decode(&head.encode()).expect("our own"), head);
        let labels: BTreeSet<_> = head.labels().collect();
        if let Some(backup) = head.backups.first().cloned() {
            head.publish(backup, &Clearance::default()).expect("it is there");
            let _ = head.remove(&BTreeSet::from([labels.first().copied().expect("there is one")]));
        }
        let lists: Vec<_> = head.condemned.iter().map(|list| list.list).collect();
        let now = head.written_at;
        for list in lists {
            assert!(head.clone().condemn(list, &labels, &BTreeMap::new(), now).is_err());
            head.mark_deleted(list, now).expect("it is there");
        }
        let _ = head.forget_deleted(now);
        assert!(head.epoch >= head.forgotten);
    }
    if let Ok(list) = CondemnedObjects::decode(content) {
        assert_eq!(CondemnedObjects::decode(&list.encode()).expect("our own"), list);
    }
    if let Ok(info) = StanzaInfo::decode(content) {
        assert!(info.current().is_ok());
        assert_eq!(StanzaInfo::decode(&info.encode()).expect("our own"), info);
    }
    if let Ok(header) = WalObjectHeader::decode(content) {
        assert_eq!(WalObjectHeader::decode(&header.encode()).expect("our own"), header);
    }
});
