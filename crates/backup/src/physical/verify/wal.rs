//! One file of the WAL archive.

use pgmahout_store::framed::{FramedError, FramedOpener};
use pgmahout_types::WalFileName;
use pgmahout_types::repository::{Digest, WalObjectHeader};

use super::Found;
use super::damage::ObjectDamage;
use super::error::VerifyError;
use super::pack::fetch;
use crate::physical::stanza::{PhysicalRepository, kind};

/// The largest object that is read: the largest segment, with room for header, frames and trailer.
const LARGEST: u64 = (1 << 30) + (1 << 24);

/// Reads a file of the archive and looks at all of it.
pub(super) async fn check(repository: &PhysicalRepository, file: WalFileName) -> Result<Found, VerifyError> {
    let name = repository.names().wal(file);
    let bytes = match fetch(repository, &name, LARGEST).await? {
        Ok(bytes) => bytes,
        Err(damage) => return Ok(Found::Damaged(damage)),
    };
    let cipher = repository.cipher();
    let info = repository.stanza_info().clone();
    let checked = tokio::task::spawn_blocking(move || {
        let opened = FramedOpener::from_header(&cipher, kind::WAL, &name, &bytes);
        let content = opened.and_then(|opener| {
            let mut frames = opener.frames(&bytes);
            let mut first = Vec::new();
            frames.next_into(&mut first)?;
            let (mut content, mut frame) = (Vec::new(), Vec::new());
            while frames.next_into(&mut frame)? {
                content.extend_from_slice(&frame);
            }
            Ok::<_, FramedError>((first, content))
        });
        let (first, content) = match content {
            Ok(content) => content,
            Err(error) => return Some(ObjectDamage::because("it cannot be opened", &error)),
        };
        let header = match WalObjectHeader::decode(&first) {
            Ok(header) => header,
            Err(error) => return Some(ObjectDamage::because("it cannot be understood", &error)),
        };
        let system = info.system(header.system_identifier);
        let problem = if header.name != file {
            format!("it holds {}", header.name)
        } else if content.len() as u64 != header.size {
            format!(
                "it holds {} bytes, and {} were archived",
                content.len(),
                header.size
            )
        } else if Digest::of(&content) != header.blake3 {
            "its content is not what was archived".to_owned()
        } else if let Some(system) = system {
            let is_segment = matches!(file, WalFileName::Segment(_));
            if !is_segment || header.size == system.wal_segment_size.bytes() {
                return None;
            }
            format!("it is a segment of {} bytes", header.size)
        } else {
            format!("it is of the cluster {}", header.system_identifier)
        };
        Some(ObjectDamage::whole(problem))
    });
    Ok(match checked.await.map_err(|_| VerifyError::Cancelled)? {
        None => Found::Whole(None),
        Some(damage) => Found::Damaged(damage),
    })
}
