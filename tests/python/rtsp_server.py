#!/usr/bin/python3
"""rtsp_server.py PORT PORT: H.264 over RTSP on loopback, for tests. Runs on the system's Python (Debian: python3-gi,
gir1.2-gst-rtsp-server-1.0).

First port:   /ball    a moving ball, 64 x 48 px, 30 frames per second, with sound in front of the picture
              /stalls  the same; after 20 frames the connection stays and no frame comes any more, for each client anew
Second port:  /ball    for user `u` with password `p`
"""
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

VIDEO = (
    "videotestsrc is-live=true pattern=ball ! video/x-raw,width=64,height=48,framerate=30/1 ! identity name=tap signal-handoffs=true "
    "! valve name=valve ! openh264enc gop-size=5 ! rtph264pay name=pay{} config-interval=1"
)
SOUND = "audiotestsrc is-live=true ! rtpL16pay name=pay0"
FRAMES = 20


def stall(_, media):
    """Closes the valve of a client's media after some frames."""
    element = media.get_element()
    tap, valve = element.get_by_name("tap"), element.get_by_name("valve")
    count = [0]

    def passed(_, buffer):
        count[0] += 1
        if count[0] == FRAMES:
            valve.set_property("drop", True)

    tap.connect("handoff", passed)


def serve(port, media):
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for path, launch, prepare, role in media:
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(launch)
        if prepare:
            factory.connect("media-configure", prepare)
        if role:
            factory.add_role_from_structure(Gst.Structure.new_from_string(
                f"{role}, media.factory.access=(boolean)true, media.factory.construct=(boolean)true"))
            auth = GstRtspServer.RTSPAuth()
            token = GstRtspServer.RTSPToken()
            token.set_string("media.factory.role", role)
            auth.add_basic(GstRtspServer.RTSPAuth.make_basic("u", "p"), token)
            server.set_auth(auth)
        server.get_mount_points().add_factory(path, factory)
    server.attach(None)
    return server


def main():
    Gst.init(None)
    open_to_all = [("/ball", f"( {SOUND} {VIDEO.format(1)} )", None, None), ("/stalls", f"( {VIDEO.format(0)} )", stall, None)]
    servers = [serve(sys.argv[1], open_to_all), serve(sys.argv[2], [("/ball", f"( {VIDEO.format(0)} )", None, "user")])]
    print("listening", len(servers), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
