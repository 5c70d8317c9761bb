"""Checks of Load Video that run inside a ComfyUI interpreter; each prints one JSON line.

    PYTHON_OF_COMFYUI tests/host/video_checks.py COMFYUI_FOLDER MODELS_FOLDER

Frame i of every test video is an even grey of level 8 * i, so that frames can be told apart.
"""

import os
import sys
from fractions import Fraction
from pathlib import Path

import host
from checking import Graph, equal, main, refusal

LEVEL = 8
TICKS = 1000  # a second
OPTIONS = {
    "libx264": {"bf": "0", "g": "10", "crf": "10", "preset": "ultrafast"},
    "mpeg4": {"qmin": "1", "qmax": "1"},
}


class Videos(Graph):
    """Our nodes and an input folder of small videos."""

    def start(self, comfyui, models, folder):
        host.start(comfyui)
        import folder_paths

        self.nodes = host.our_nodes()
        self.models, self.folder = Path(models), Path(folder) / "input"
        self.folder.mkdir()
        folder_paths.set_input_directory(str(self.folder))

    def path(self, name):
        return self.folder / name


GRAPH = Videos()


def write(name, times=range(0, 1000, 40), codec="libx264", rate=25, size=(64, 64), **options):
    """Write a video whose frame i shows from times[i] ms on; returns its name.

    `sound` is (codec, samples (channels, n) float, rate); `turn` the rotation in degrees.
    """
    import av
    import numpy as np

    sound, turn = options.pop("sound", None), options.pop("turn", 0)
    with av.open(str(GRAPH.path(name)), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        ticks = rate if name.endswith("avi") else TICKS  # AVI knows even rates only
        stream.codec_context.time_base = Fraction(1, ticks)
        stream.options = OPTIONS.get(codec, {})
        if turn:
            stream.set_display_rotation(turn)
        track = container.add_stream(sound[0], rate=sound[2]) if sound else None
        if track:
            track.layout = "mono" if len(sound[1]) == 1 else "stereo"
        for i, time in enumerate(times):
            pixels = np.full((size[1], size[0], 3), LEVEL * i % 256, np.uint8)
            if turn:
                pixels[: size[1] // 2] = 255  # bright where the camera's top is
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * ticks / TICKS), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track:
            _mux_sound(container, track, *sound)
    return name


def _mux_sound(container, track, codec, samples, rate):
    import av
    import numpy as np

    planar = {"aac": "fltp", "libopus": "flt"}.get(codec, "s16")
    if planar != "fltp":
        samples = samples.T.reshape(1, -1)
    if planar == "s16":
        samples = np.round(samples * 32768).astype(np.int16)
    layout = track.layout.name
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=planar, layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    container.mux(track.encode(frame))
    container.mux(track.encode())


def ramp(seconds, rate=8000, channels=1):
    """Return samples whose value tells their place, exactly in 16 bits: place modulo 20000."""
    import numpy as np

    line = np.arange(int(seconds * rate)) % 20000 / 32768
    return np.stack([line] * channels).astype(np.float32)


def burst(seconds, begin, rate=48000, channels=1):
    """Return silence that turns into a tone at `begin` seconds."""
    import numpy as np

    t = np.arange(int(seconds * rate)) / rate
    tone = np.where(t >= begin, 0.5 * np.sin(2 * np.pi * 1000 * t), 0)
    return np.stack([tone] * channels).astype(np.float32)


def load(name, width=64, **inputs):
    """Run the node; returns images, audio, fps, frame_count."""
    return GRAPH.nodes["ADL_LoadVideo"].execute(name, width=width, **inputs).result


def order(images):
    """Return the number of the source frame that each image shows."""
    return [round(float(i.mean()) * 255 / LEVEL) for i in images]


# ---- which frames --------------------------------------------------------------------------------


def check_memory_is_bounded_by_what_is_returned():
    """4000 frames of 640 x 480 would take 14.7 GB; 100 of them are asked, then a few by size."""
    import resource

    times = range(0, 4000 * 40, 40)
    name = write("long.mp4", times=times, size=(640, 480))
    load(name, max_frames=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images, *_ = load(name, width=0, max_frames=100)
    returned = images.numel() * 4 / 1024
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert images.shape == (100, 512, 640, 3), images.shape
    assert growth < 1.25 * returned + 100 * 1024, (growth, returned)
    images, *_ = load(name, width=64, start=100, max_frames=3)
    assert order(images) == [(2500 + i) % 32 for i in range(3)]  # levels start over


def check_every_frame_of_an_even_file_comes_once():
    import torch

    for name, codec in (
        ("a.mp4", "libx264"),
        ("a.webm", "libvpx"),
        ("a.mkv", "libx264"),
        ("a.mov", "libx264"),
    ):
        images, audio, fps, count = load(write(name, codec=codec))
        assert order(images) == list(range(25)), (name, order(images))
        assert (count, audio["waveform"].abs().max()) == (25, 0)
        assert abs(fps - 25) < 1e-6, (name, fps)
        assert images.shape == (25, 64, 64, 3)
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1


def check_rates_that_milliseconds_cannot_tell():
    for rate in (24, 30, 60):
        times = [round(i * 1000 / rate) for i in range(31)]
        images, _, fps, _ = load(write("ms.webm", times, "libvpx", rate))
        assert order(images) == list(range(31)), (rate, order(images))
        assert abs(fps - rate) < 1e-6


def check_ntsc_rate_is_told_exactly():
    name = write("ntsc.mp4", [round(i * 1001 / 30) for i in range(30)], rate=Fraction(30000, 1001))
    images, _, fps, _ = load(name)
    assert order(images) == list(range(30)), order(images)
    assert abs(fps - 29.97) < 0.05, fps


def check_lower_and_higher_fps_keep_the_length():
    name = write("a.mp4")
    images, _, fps, count = load(name, fps=8.0)
    assert (fps, count) == (8.0, 8)
    assert all(abs(shown - i * 25 / 8) <= 0.5 for i, shown in enumerate(order(images)))
    images, _, fps, count = load(name, fps=50.0)
    assert order(images) == [i // 2 for i in range(50)]
    assert (fps, count) == (50.0, 50)


def check_variable_rate_is_resampled_by_time():
    times = [0, 40, 80, 600, 640, 1200, 1240, 1280, 1900, 1960]
    name = write("variable.mp4", times)
    images, *_ = load(name, fps=10.0)
    shown = [max(k for k, t in enumerate(times) if t <= 100 * i) for i in range(len(images))]
    assert order(images) == shown, (order(images), shown)
    assert len(images) == 20
    images, _, fps, count = load(name)  # at its average rate
    assert abs(count / fps - 2) < 0.11, (count, fps)
    images, *_ = load(write("variable.webm", times, "libvpx"), fps=10.0)
    assert order(images) == shown


def check_start_and_cap():
    for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")):
        write(name, codec=codec)
        for start, first in ((0.0, 0), (0.04, 1), (0.4, 10), (0.52, 13), (0.53, 13), (0.96, 24)):
            images, _, _, count = load(name, start=start, max_frames=3)
            expected = list(range(first, min(first + 3, 25)))
            assert order(images) == expected, (name, start, order(images))
            assert count == len(expected)
    images, *_ = load("a.mp4", start=0.4, fps=12.5, max_frames=4)
    assert order(images) == [10, 12, 14, 16]
    assert load("a.mp4", max_frames=0)[3] == 25


def check_transport_stream_whose_clock_begins_late():
    images, audio, _, _ = load(write("a.ts", sound=("aac", burst(1, 0.5), 48000)), start=0.4)
    assert order(images) == list(range(10, 25)), order(images)
    assert abs(onset(audio) - 0.1) < 0.01, onset(audio)


def check_cancel_stops_the_reading():
    import comfy.model_management

    name = write("a.mp4")
    comfy.model_management.interrupt_current_processing()
    try:
        load(name)
    except comfy.model_management.InterruptProcessingException:
        return
    finally:
        comfy.model_management.interrupt_current_processing(False)
    raise AssertionError("the reading went on")


# ---- size ----------------------------------------------------------------------------------------


def check_sizes_are_multiples_of_64():
    choose_size = host.submodule("video.size").choose_size
    for own, asked, expected in (
        ((1920, 1080), (512, 0), (512, 320)),
        ((1920, 1080), (0, 512), (896, 512)),
        ((1920, 1080), (0, 0), (1920, 1088)),
        ((1080, 1920), (512, 0), (512, 896)),
        ((640, 480), (500, 500), (512, 512)),
        ((30, 20), (0, 0), (64, 64)),
    ):
        assert choose_size(*own, *asked) == expected, (own, asked)


def check_resize_is_by_area_and_crops_evenly():
    import numpy as np

    crop_and_resize = host.submodule("video.size").crop_and_resize
    pixels = np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8)
    area = pixels[:, 64:192].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(crop_and_resize(pixels, (64, 64), 1) - area).max() <= 0.5
    tall = pixels.transpose(1, 0, 2)
    area = tall[64:192].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(crop_and_resize(tall, (64, 64), 1) - area).max() <= 0.5
    # pixels half as wide as high: all of it is shown, as it is meant to be
    wide = crop_and_resize(pixels, (64, 64), 2)
    assert wide.shape == (64, 64, 3)
    assert np.abs(wide - pixels.reshape(64, 2, 64, 4, 3).mean(axis=(1, 3))).max() <= 0.5
    assert np.array_equal(crop_and_resize(pixels, (256, 128), 2), pixels)


def check_phone_videos_stand_upright():
    for turn, bright in (
        (90, (slice(None), slice(0, 20))),
        (-90, (slice(None), slice(-20, None))),
        (180, (slice(-20, None), slice(None))),
    ):
        name = write("turned.mp4", times=[0, 40, 80], size=(128, 64), turn=turn)
        image = load(name, width=0)[0][0]
        assert image.shape == ((64, 128, 3) if turn == 180 else (128, 64, 3)), image.shape
        assert image[bright].mean() > 0.9, (turn, image[bright].mean())
        assert image.mean() < 0.6


# ---- sound ---------------------------------------------------------------------------------------


def onset(audio):
    """Return at which second of an AUDIO the tone begins."""
    loud = (audio["waveform"][0, 0].abs() > 0.1).nonzero()
    return float(loud[0]) / audio["sample_rate"]


def check_sound_is_cut_to_the_frames_sample_by_sample():
    import torch

    name = write("pcm.mov", sound=("pcm_s16le", ramp(1), 8000))
    for start, frames in ((0.0, 0), (0.4, 5), (0.52, 1), (0.3, 0)):
        images, audio, fps, _ = load(name, start=start, max_frames=frames)
        first, count = round(start * 8000), round(len(images) / fps * 8000)
        expected = torch.arange(first, first + count) / 32768
        expected[max(0, 8000 - first) :] = 0  # silence where the file has no sound left
        assert audio["sample_rate"] == 8000
        assert audio["waveform"].shape == (1, 1, count)
        assert audio["waveform"].dtype == torch.float32
        assert equal(audio["waveform"][0, 0], expected.float()), (start, frames)


def check_compressed_sound_stays_in_time():
    for name, codec, sound in (
        ("aac.mp4", "libx264", "aac"),
        ("opus.webm", "libvpx", "libopus"),
        ("aac.mkv", "libx264", "aac"),
    ):
        times = range(0, 3000, 40)
        write(name, times, codec, sound=(sound, burst(3, 2, channels=2), 48000))
        for start in (0.0, 0.72, 1.8):
            _, audio, _, count = load(name, start=start, max_frames=30)
            assert audio["waveform"].shape == (1, 2, count * 1920)
            found = onset(audio) if start > 0.8 else None
            if found is not None:
                assert abs(found - (2 - start)) < 0.01, (name, start, found)
            else:
                assert audio["waveform"].abs().max() < 0.1
        shift = onset(load(name, start=1.0, max_frames=0)[1]) - onset(load(name, max_frames=0)[1])
        assert abs(shift + 1) < 0.001, (name, shift)  # Matroska tells time in milliseconds


def check_six_channels_become_stereo_and_silent_files_give_silence():
    import numpy as np

    read_sound = host.submodule("video.sound").read_sound
    import av

    with av.open(str(GRAPH.path("six.wav")), "w") as container:
        track = container.add_stream("pcm_s16le", rate=8000, layout="5.1")
        samples = np.full((1, 6 * 8000), 8192, np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="5.1")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(track.encode(frame))
        container.mux(track.encode())
    audio = read_sound(GRAPH.path("six.wav"), 0.0, 1.0).audio
    assert audio["waveform"].shape == (1, 2, 8000)
    assert audio["waveform"].abs().max() > 0.1
    audio = load(write("silent.mp4"))[1]
    assert audio["waveform"].shape == (1, 2, audio["sample_rate"])
    assert not audio["waveform"].any()


def check_core_nodes_take_what_comes_out():
    from comfy_extras.nodes_video import CreateVideo

    for sound in (None, ("aac", burst(1, 0.5, channels=2), 48000)):
        images, audio, fps, _ = load(write("core.mp4", sound=sound), fps=8.0)
        video = CreateVideo.execute(images, fps, audio).result[0]
        out = GRAPH.path("saved.mp4")
        video.save_to(str(out))
        again, audio, fps, count = load(out.name)
        assert (count, round(fps, 6)) == (8, 8.0)
        assert abs(order(again)[-1] - 22) <= 1
        assert audio["waveform"].any() == (sound is not None)
        if sound:
            assert abs(onset(audio) - 0.5) < 0.03, onset(audio)


# ---- what can be wrong ---------------------------------------------------------------------------


def cut(name, share, **options):
    """Write a video that ends too early; returns its name."""
    path = GRAPH.path(write(name, **options))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return name


def check_files_that_are_no_video():
    import numpy as np

    GRAPH.path("empty.mp4").write_bytes(b"")
    assert "empty file" in refusal(load, "empty.mp4")
    GRAPH.path("text.mp4").write_text("hello " * 1000)
    assert "is not a video that PyAV can read" in refusal(load, "text.mp4")
    GRAPH.path("noise.mp4").write_bytes(np.random.default_rng(0).bytes(50000))
    assert "is not a video that PyAV can read" in refusal(load, "noise.mp4")
    import av

    for name, codec in (
        ("sound.mp4", "aac"),
        ("sound.webm", "libopus"),
        ("sound.wav", "pcm_s16le"),
    ):
        with av.open(str(GRAPH.path(name)), "w") as container:
            track = container.add_stream(codec, rate=48000, layout="mono")
            _mux_sound(container, track, codec, burst(1, 0), 48000)
        assert "sound but no picture" in refusal(load, name), name
    for name, codec in (("none.mkv", "libx264"), ("none.avi", "mpeg4")):
        with av.open(str(GRAPH.path(name)), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
        assert "has no frames" in refusal(load, name), name
    assert load(write("one.mp4", times=[0]))[3] == 1


def check_files_that_break_off():
    times = range(0, 4000, 40)
    sentence = refusal(load, cut("tail.mp4", 0.6, times=times), max_frames=0)
    assert "is not a video that PyAV can read" in sentence, sentence  # its index stood at the end
    for name, codec, options in (
        ("front.mp4", "libx264", {"movflags": "+faststart"}),
        ("cut.webm", "libvpx", {}),
    ):
        cut(name, 0.6, times=times, codec=codec, size=(320, 320), **options)
        sentence = refusal(load, name, max_frames=0)
        assert "is cut off at" in sentence or "is damaged after" in sentence, sentence
        assert load(name, max_frames=5)[3] == 5


def check_start_past_the_end_is_told():
    for name, codec in (
        ("a.mp4", "libx264"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
        ("a.mov", "libx264"),
    ):
        sentence = refusal(load, write(name, codec=codec), start=1.5)
        assert "start is 1.5 s" in sentence, sentence
        assert "ends at 1.0" in sentence, sentence


def check_a_rate_that_nobody_means_is_told():
    name = write("browser.webm", times=range(0, 25), codec="libvpx", rate=1000)
    assert "set fps" in refusal(load, name)
    assert load(name, fps=8.0)[3] == 1


def check_memory_that_is_not_there():
    path = GRAPH.path(write("a.mp4"))
    clip = host.submodule("video.clip")
    request, ten_frames = clip.ClipRequest(width=64), 64 * 64 * 3 * 5 * 10
    sentence = refusal(clip.read_clip, path, request, memory=ten_frames)
    assert "only 10 frames of" in sentence, sentence


def check_playlists_do_not_lead_to_other_files():
    write("a.mp4")
    GRAPH.path("list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    assert "is not a video that PyAV can read" in refusal(load, "list.mp4")
    GRAPH.path("list.webm").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{GRAPH.path('a.mp4')}\n#EXT-X-ENDLIST\n"
    )
    assert "is not a video that PyAV can read" in refusal(load, "list.webm")


def check_paths_stay_inside_the_input_folder():
    node = GRAPH.nodes["ADL_LoadVideo"]
    write("a.mp4")
    outside = GRAPH.folder.parent / "outside.mp4"
    outside.write_bytes(GRAPH.path("a.mp4").read_bytes())
    for name in (
        "../outside.mp4",
        str(outside),
        "sub/../../outside.mp4",
        "outside.mp4 [output]",
        "../input-2/a.mp4",
    ):
        sentence = refusal(load, name)
        assert "outside ComfyUI's input folder" in sentence, sentence
        assert node.validate_inputs(name) == sentence
    assert "is not in ComfyUI's input folder" in refusal(load, "gone.mp4")
    assert "is not in" in refusal(load, "")
    assert node.validate_inputs(None) is True
    GRAPH.path("sub").mkdir(exist_ok=True)
    GRAPH.path("sub/a.mp4").write_bytes(GRAPH.path("a.mp4").read_bytes())
    for name in ("a.mp4", "a.mp4 [input]", "sub/a.mp4"):
        assert node.validate_inputs(name) is True
        assert load(name)[3] == 25


def check_a_link_that_leads_out_of_the_input_folder_is_read_or_not_listed():
    """Artists link to where their videos lie; newer hosts refuse that, and so do we then."""
    import folder_paths

    write("a.mp4")
    outside = GRAPH.folder.parent / "outside.mp4"
    outside.write_bytes(GRAPH.path("a.mp4").read_bytes())
    GRAPH.path("link.mp4").unlink(missing_ok=True)
    GRAPH.path("link.mp4").symlink_to(outside)
    node = GRAPH.nodes["ADL_LoadVideo"]
    (combo,) = [i for i in node.define_schema().inputs if i.id == "video"]
    if folder_paths.exists_annotated_filepath("link.mp4"):
        assert "link.mp4" in combo.options
        assert node.validate_inputs("link.mp4") is True
        assert load("link.mp4")[3] == 25
    else:
        assert "link.mp4" not in combo.options
        sentence = refusal(load, "link.mp4")
        assert "outside ComfyUI's input folder" in sentence
        assert node.validate_inputs("link.mp4") == sentence
    assert "a.mp4" in combo.options


def check_a_changed_file_is_read_again():
    node = GRAPH.nodes["ADL_LoadVideo"]
    path = GRAPH.path(write("changed.mp4"))
    first = node.fingerprint_inputs("changed.mp4", start=0.0, fps=8.0)
    assert node.fingerprint_inputs(video="changed.mp4") == first
    os.utime(path, (1, 1))
    assert node.fingerprint_inputs("changed.mp4") != first


def check_a_broken_packet_costs_its_frame_alone():
    """The frames are the core's own, and the one before is held in place of the broken one."""
    import av
    import numpy as np
    from comfy_api.latest import InputImpl

    path = GRAPH.path(write("broken.mp4", times=range(0, 1200, 40)))
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    place, size = packets[13]
    content = bytearray(path.read_bytes())
    content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    images, *_ = load("broken.mp4")
    assert order(images)[:14] == [*range(13), 12], order(images)
    assert len(images) == 30
    try:
        core = InputImpl.VideoFromFile(str(path)).get_components().images
    except av.error.InvalidDataError:  # older hosts give nothing
        return
    assert len(core) == 29, len(core)
    ours = np.delete(images.numpy(), 13, axis=0)
    assert np.abs(ours - core.numpy()).mean() <= 2 / 255


def check_the_list_shows_videos_only():
    from PIL import Image

    write("a.mp4")
    frames = [Image.new("RGB", (64, 64), (level, 0, 0)) for level in (0, 255)]
    for name, options in (("moving.webp", {"duration": 80}), ("moving.png", {"duration": 80})):
        frames[0].save(GRAPH.path(name), save_all=True, append_images=frames[1:], **options)
        assert load(name)[3] == 2, name
    for name in ("still.webp", "still.png"):
        frames[0].save(GRAPH.path(name))
        assert "is a still picture" in refusal(load, name)
    kinds = (".gif", ".ts", ".m2ts", ".mxf", ".3gp", ".wmv", ".flv", ".ogv", ".webp", ".png")
    shown = GRAPH.nodes["ADL_LoadVideo"].define_schema().inputs[0].options
    assert {"moving.webp", "moving.png"} <= set(shown)
    assert not {"still.webp", "still.png"} & set(shown)
    for kind in kinds[:-2]:
        GRAPH.path(f"a{kind}").write_bytes(GRAPH.path("a.mp4").read_bytes())
    shown = GRAPH.nodes["ADL_LoadVideo"].define_schema().inputs[0].options
    assert {f"a{kind}" for kind in kinds[:-2]} <= set(shown), shown
    GRAPH.path("notes.txt").write_text("no video")
    schema = GRAPH.nodes["ADL_LoadVideo"].define_schema()
    (options,) = (i.as_dict() for i in schema.inputs if i.id == "video")
    assert "a.mp4" in options["options"]
    assert "notes.txt" not in options["options"]
    assert options["video_upload"] is True


if __name__ == "__main__":
    main(GRAPH, globals())
    sys.exit(0)
