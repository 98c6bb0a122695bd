"""How FFmpeg is allowed to open a file; without torch, for processes that shall be small."""

from typing import BinaryIO

import av
from av.container import InputContainer

# Only these may be opened: FFmpeg also knows playlists, which read other files, and pictures.
FORMATS = "mov,matroska,ogg,flac,mp3,aac,wav,w64,aiff,au,caf,amr,asf,avi,mpegts"
CODECS = (
    "aac,aac_latm,alac,opus,vorbis,flac,mp3float,mp3,mp2float,mp2,ac3,eac3,amrnb,amrwb,"
    "wmav1,wmav2,gsm,gsm_ms,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,"
    "pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be,"
    "pcm_alaw,pcm_mulaw"
)


def open_container(file: BinaryIO) -> InputContainer:
    """Read a file's headers.

    Raises:
        av.FFmpegError: it is in none of the formats, or damaged.
    """
    return av.open(
        file,
        mode="r",
        metadata_errors="replace",
        options={"format_whitelist": FORMATS, "codec_whitelist": CODECS},
    )
