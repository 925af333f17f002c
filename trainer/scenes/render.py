"""A small vectorised renderer on Mitsuba's ray intersections.

Mitsuba's own integrators compile a kernel per combination of plugins, about a second each. Here a scene is one
mesh plus tables (materials, textures, lights, sky), all of it data, so a process compiles three kernels in its
life. The light of the sun or of a lamp is sampled with many rays per pixel and stays sharp; the light from
everywhere else is smooth, is sampled with few rays, and is smoothed under the guidance of depth and normals.

Camera frame: x right, y down, z forward; depth is the z of the first hit through the centre of the pixel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from .backend import upload
from .geometry import Builder
from .textures import LEVELS, ROW, SIZE, Bank

SKY_W, SKY_H = 256, 128


@dataclass
class Lighting:
    """The light of a scene.

    sky (SKY_H, SKY_W, 3) radiance of the sky, z up in row 0, azimuth along the columns. key_rgb: irradiance of
    the key light on a surface facing it (at 1 m for a point light). key_at: unit direction to the sun, or the
    position of the lamp. lights: rows of corner (3), edge u (3), edge v (3), radiance (3); they emit along u × v.
    ambient: radiance assumed where paths end. open_sky: whether rays that leave the scene bring light (false in
    closed rooms, whose windows are lights). carried_at: where in the camera's frame the key light sits, if the camera
    carries it; key_at does not count then.
    """

    sky: np.ndarray
    key_rgb: np.ndarray
    key_at: np.ndarray
    key_is_point: bool = False
    key_radius: float = 0.006
    lights: list[np.ndarray] = field(default_factory=list)
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, 0.02))
    open_sky: bool = True
    carried_at: np.ndarray | None = None


@dataclass
class Camera:
    """A pinhole camera: position (3,) metres; rotation (3, 3) with columns x right, y down, z forward in world."""

    position: np.ndarray
    rotation: np.ndarray
    k: np.ndarray
    width: int
    height: int


def look(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """World-from-camera rotation (3, 3): yaw about z from x, pitch up, roll clockwise, all radians."""
    f = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(f, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * right + s * down, -s * right + c * down, f], 1)


class DeviceBank:
    """The texture bank in Dr.Jit memory."""

    def __init__(self, mi: Any, bank: Bank) -> None:
        import drjit as dr

        self.words = upload(mi.UInt32, bank.packed)
        self.offsets = upload(mi.UInt32, bank.level_offset)
        self.stride = dr.opaque(mi.UInt32, bank.words_per_texture)


class World:
    """A scene on the device, ready for images and LiDAR scans."""

    def __init__(self, mi: Any, bank: DeviceBank, builder: Builder, light: Lighting) -> None:
        self.mi, self.bank, self.light = mi, bank, light
        mesh = builder.merged()
        self.faces_np = mesh.f
        shape = mi.Mesh("scene", len(mesh.v), len(mesh.f))
        params = mi.traverse(shape)
        params["vertex_positions"] = upload(mi.Float, mesh.v)
        params["faces"] = upload(mi.UInt32, mesh.f)
        params.update()
        self.scene = mi.load_dict({"type": "scene", "mesh": shape})
        self.positions = mesh.v
        self.upload(mesh, np.stack(builder.rows))
        self.set_light(light)

    def upload(self, mesh: Any, rows: np.ndarray) -> None:
        """Copies what shading needs: per face normal, tangent, texture density, material; per vertex n, uv."""
        mi = self.mi
        p, t = mesh.v[mesh.f], mesh.uv[mesh.f]
        e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
        g = np.cross(e1, e2)
        area = np.linalg.norm(g, axis=1)
        d1, d2 = t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]
        det = d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]
        tangent = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * np.sign(det)[:, None]
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
        density = np.sqrt(np.maximum(np.abs(det), 1e-12) / np.maximum(area, 1e-12))
        # rows of four, so that each is fetched with one load
        face = np.concatenate(
            [g / np.maximum(area, 1e-12)[:, None], density[:, None], tangent, 0 * density[:, None]], 1
        )
        vert = np.concatenate([mesh.uv, np.zeros_like(mesh.uv), mesh.n, np.zeros_like(mesh.n[:, :1])], 1)
        self.face = upload(mi.Float, face)
        self.face_mat = upload(mi.UInt32, mesh.part)
        self.faces = upload(mi.UInt32, mesh.f)
        self.vert = upload(mi.Float, vert)
        self.rows = upload(mi.Float, rows)

    def set_light(self, light: Lighting) -> None:
        """Puts another light on the same geometry."""
        mi = self.mi
        self.light = light
        self.sky = upload(mi.Float, light.sky)
        lights = light.lights or [np.zeros(12)]
        self.lights = upload(mi.Float, np.stack(lights))
        p = np.zeros(16, np.float32)
        p[0:3], p[3:6], p[6:9] = light.key_at, light.key_rgb, light.ambient
        p[9], p[10], p[11] = light.key_is_point, light.key_radius, light.open_sky
        p[12] = len(light.lights)
        self.params_np = p

    def shift(self, parts: list[tuple[slice, np.ndarray]]) -> None:
        """Moves parts of the geometry, (vertices, offset (3,) metres) each, from where they were built; no turning."""
        moved = self.positions.copy()
        for vertices, offset in parts:
            moved[vertices] += offset.astype(np.float32)
        params = self.mi.traverse(self.scene)
        params["mesh.vertex_positions"] = upload(self.mi.Float, moved)
        params.update()

    # ---- pieces of kernels -------------------------------------------------------------------------------

    def _sky(self, d: Any) -> Any:
        """Radiance of the sky in direction d."""
        import drjit as dr

        mi = self.mi
        u = (dr.atan2(d.y, d.x) / (2 * dr.pi) + 0.5) * SKY_W - 0.5
        v = dr.acos(dr.clip(d.z, -1, 1)) / dr.pi * SKY_H - 0.5
        x0, y0 = dr.floor(u), dr.floor(v)
        fx, fy = u - x0, v - y0
        x, y = mi.Int32(x0), mi.Int32(y0)
        out = mi.Vector3f(0)
        for dx, dy, w in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
            i = mi.UInt32(dr.clip(y + dy, 0, SKY_H - 1) * SKY_W + ((x + dx + SKY_W) & (SKY_W - 1)))
            out += dr.gather(mi.Vector3f, self.sky, i) * w
        return out

    def _texel(self, base: Any, size: Any, x: Any, y: Any, active: Any) -> Any:
        import drjit as dr

        mi = self.mi
        w = dr.gather(mi.UInt32, self.bank.words, base + (y & (size - 1)) * size + (x & (size - 1)), active)
        r, g, b = mi.Float(w & 255), mi.Float((w >> 8) & 255), mi.Float((w >> 16) & 255)
        return mi.Vector3f(r * r, g * g, b * b) / 65025.0, mi.Float(w >> 24) / 255.0

    def _texture(self, tile: Any, uv: Any, level: Any, smooth: bool, active: Any) -> Any:
        """Linear RGB, height and its slope per texel (2) of a texture at uv (1 = one repetition).

        Where not `active`, uv and level come from a ray that hit nothing and may be anything.
        """
        import drjit as dr

        mi = self.mi
        size = mi.UInt32(SIZE) >> level
        base = tile * self.bank.stride + dr.gather(mi.UInt32, self.bank.offsets, level, active)
        fu, fv = uv.x - dr.floor(uv.x), uv.y - dr.floor(uv.y)
        if not smooth:
            x, y = mi.UInt32(fu * mi.Float(size)), mi.UInt32(fv * mi.Float(size))
            return self._texel(base, size, x, y, active)[0], None, None
        x, y = fu * mi.Float(size) + mi.Float(size) - 0.5, fv * mi.Float(size) + mi.Float(size) - 0.5
        x0, y0 = dr.floor(x), dr.floor(y)
        fx, fy = x - x0, y - y0
        i, j = mi.UInt32(x0), mi.UInt32(y0)
        c00, h00 = self._texel(base, size, i, j, active)
        c10, h10 = self._texel(base, size, i + 1, j, active)
        c01, h01 = self._texel(base, size, i, j + 1, active)
        c11, h11 = self._texel(base, size, i + 1, j + 1, active)
        c = (c00 * (1 - fx) + c10 * fx) * (1 - fy) + (c01 * (1 - fx) + c11 * fx) * fy
        slope_u = (h10 - h00) * (1 - fy) + (h11 - h01) * fy
        slope_v = (h01 - h00) * (1 - fx) + (h11 - h10) * fx
        return c, slope_u, slope_v

    def _row(self, table: Any, index: Any, fours: int, active: Any) -> list:
        """Numbers of row `index` of a table whose rows are a multiple of four; the first 4 * fours of them."""
        import drjit as dr

        mi = self.mi
        width = {id(self.face): 2, id(self.vert): 2, id(self.rows): ROW // 4}[id(table)]
        out = []
        for k in range(fours):
            out += [*dr.gather(mi.Vector4f, table, index * width + k, active)]
        return out

    def _hit(self, ray: Any, active: Any, footprint: Any, smooth: bool, random: Any) -> dict[str, Any]:
        """Intersects and gathers the surface: a dict of position, normals, albedo, and so on.

        footprint: width of a pixel at 1 m; it selects the level of the texture at first hits.
        """
        import drjit as dr

        mi = self.mi
        pi = self.scene.ray_intersect_preliminary(ray, coherent=mi.Bool(smooth), active=active)
        valid = active & pi.is_valid()
        prim = dr.select(valid, pi.prim_index, 0)
        gx = self._row(self.face, prim, 2 if smooth else 1, valid)
        g = mi.Vector3f(gx[0], gx[1], gx[2])
        g = dr.select(dr.dot(g, ray.d) > 0, -g, g)
        mat = dr.gather(mi.UInt32, self.face_mat, prim, valid)
        m = self._row(self.rows, mat, ROW // 4, valid)
        f = [dr.gather(mi.UInt32, self.faces, prim * 3 + k, valid) for k in range(3)]
        b1, b2 = pi.prim_uv.x, pi.prim_uv.y
        w = (1 - b1 - b2, b1, b2)
        uv = mi.Vector2f(0)
        n = mi.Vector3f(0)
        for k in range(3):
            at = self._row(self.vert, f[k], 2 if smooth else 1, valid)
            uv += w[k] * mi.Vector2f(at[0], at[1])
            if smooth:
                n += w[k] * mi.Vector3f(*at[4:7])
        uv = uv * m[19] + mi.Vector2f(m[22], m[23])
        tile, macro_tile = mi.UInt32(m[0]), mi.UInt32(m[21])
        if smooth:
            n = dr.normalize(dr.select(dr.dot(n, g) < 0, -n, n) + 1e-9)
            cos = dr.maximum(-dr.dot(g, ray.d), 0.05)
            texels = footprint * pi.t / dr.sqrt(cos) * gx[3] * m[19] * SIZE
            level = mi.UInt32(dr.clip(dr.log2(texels) - 0.9 + random, 0, LEVELS - 1.01))
            c, su, sv = self._texture(tile, uv, level, True, valid)
            strength = m[15] * 1.6 / (1.0 + mi.Float(level))
            tangent = mi.Vector3f(gx[4], gx[5], gx[6])
            n = dr.normalize(n - strength * (su * tangent + sv * dr.cross(n, tangent)))
            n = dr.normalize(n + dr.maximum(0.02 - dr.dot(n, -ray.d), 0) * -ray.d)
        else:
            n = g
            c, _, _ = self._texture(tile, uv, mi.UInt32(3), False, valid)
        mc, _, _ = self._texture(macro_tile, uv * 0.171, mi.UInt32(2), smooth, valid)
        rgb = mi.Vector3f(*[m[10 + k] + m[1 + 3 * k] * c.x + m[2 + 3 * k] * c.y + m[3 + 3 * k] * c.z for k in range(3)])
        rgb = dr.clip(rgb * (1 + m[20] * (mc.x - 0.25) * 2), 0, 0.95)
        return {
            "valid": valid,
            "t": pi.t,
            "p": ray.o + ray.d * pi.t + g * (1e-4 + 2e-5 * pi.t),
            "g": g,
            "n": n,
            "albedo": rgb,
            "spec": m[13],
            "rough": m[14],
            "emission": mi.Vector3f(m[16], m[17], m[18]),
            "outside": m[24],
        }

    def _shadowed(self, o: Any, d: Any, dist: Any, active: Any) -> Any:
        mi = self.mi
        ray = mi.Ray3f(o, d)
        ray.maxt = dist
        return self.scene.ray_test(ray, active=active)

    def _key(self, hit: Any, par: Any, r1: Any, r2: Any, active: Any) -> Any:
        """Direction to the key light and its irradiance on a facing surface, zero in shadow."""
        import drjit as dr

        mi = self.mi
        at = mi.Vector3f(par[0], par[1], par[2])
        point = par[9] > 0.5
        to = dr.select(point, at - hit["p"], at)
        dist = dr.norm(to)
        jitter = mi.Vector3f(mi.warp.square_to_uniform_sphere(mi.Point2f(r1, r2))) * par[10]
        to = to + jitter * dr.select(point, 1.0, dist)
        dist = dr.norm(to)
        d = to / dr.maximum(dist, 1e-6)
        rgb = mi.Vector3f(par[3], par[4], par[5]) / dr.select(point, dr.square(dr.maximum(dist, 0.15)), 1.0)
        lit = active & (dr.dot(hit["n"], d) > 0) & (dr.dot(hit["g"], d) > 0) & (dr.max(rgb) > 0)
        blocked = self._shadowed(hit["p"], d, dr.select(point, dist * 0.998, 2000.0), lit)
        return d, dr.select(lit & ~blocked, rgb, mi.Vector3f(0))

    def _area(self, hit: Any, par: Any, r1: Any, r2: Any, r3: Any, r4: Any, active: Any) -> Any:
        """E / pi by the area lights: of four candidates spread over the lights one is chosen by what it would give.

        Choosing well before the shadow ray is what keeps halls with fifty lamps free of sparkles.
        """
        import drjit as dr

        mi = self.mi
        count = par[12]
        on = active & (count > 0.5)
        tries = 4
        total, choice, at_best = mi.Float(0), mi.Vector3f(0), mi.Point3f(0)
        candidates = []
        for k in range(tries):
            i = mi.UInt32(dr.minimum((r3 + k) / tries * count, count - 1)) * 3
            a, b, c = (dr.gather(mi.Vector4f, self.lights, i + j, on) for j in range(3))
            u, v, rgb = mi.Vector3f(a.w, b.x, b.y), mi.Vector3f(b.z, b.w, c.x), mi.Vector3f(c.y, c.z, c.w)
            s1, s2 = r1 + k * 0.618034, r2 + k * 0.754878
            at = mi.Vector3f(a.x, a.y, a.z) + u * (s1 - dr.floor(s1)) + v * (s2 - dr.floor(s2))
            normal = dr.cross(u, v)
            to = at - hit["p"]
            d2 = dr.maximum(dr.squared_norm(to), 0.01)
            facing = dr.maximum(dr.dot(hit["n"], to), 0) * dr.maximum(-dr.dot(normal, to), 0) / dr.square(d2)
            give = rgb * (dr.minimum(facing / dr.pi, 3.0) * count)
            give = dr.select(on & (dr.dot(hit["g"], to) > 0), give, mi.Vector3f(0))
            weight = dr.mean(give)
            total += weight
            candidates.append((weight, give, at))
        threshold, so_far = r4 * total, mi.Float(0)
        for weight, give, at in candidates:
            here = (so_far <= threshold) & (weight > 0)
            choice = dr.select(here, give / dr.maximum(weight, 1e-12), choice)
            at_best = dr.select(here, at, at_best)
            so_far += weight
        to = at_best - hit["p"]
        dist = dr.norm(to)
        on &= total > 0
        on &= ~self._shadowed(hit["p"], to / dr.maximum(dist, 1e-6), dist * 0.998 - 0.002, on)
        return dr.select(on, choice * (total / tries), mi.Vector3f(0))

    def _params(self) -> Any:
        import drjit as dr

        mi = self.mi
        return [dr.opaque(mi.Float, float(x)) for x in self.params_np]

    def _camera_rays(self, cam: Camera, spp: int, seed: int, centre: bool) -> Any:
        """Rays of all pixels, sample index fastest; also the depth per unit of t and the random numbers."""
        import drjit as dr

        mi = self.mi
        n = cam.width * cam.height * spp
        one = functools.partial(dr.opaque, mi.Float)  # data, not constants of the kernel
        index = dr.arange(mi.UInt32, n)
        per = dr.opaque(mi.UInt32, spp)
        wide = dr.opaque(mi.UInt32, cam.width)
        pixel = index // per
        y = pixel // wide
        x = pixel - y * wide
        key = dr.opaque(mi.UInt32, seed & 0xFFFFFFFF)
        randoms = []
        for k in range(6):
            a, b = mi.sample_tea_32(index * 6 + k, key, 5)
            randoms += [mi.Float(a >> 8) / 16777216.0, mi.Float(b >> 8) / 16777216.0]
        if centre:
            jx, jy = mi.Float(0.5), mi.Float(0.5)
        else:
            # a shuffled lattice over the pixel: better spread than free random numbers
            s = mi.Float(index - pixel * per)
            shift = mi.Float(mi.sample_tea_32(pixel, key, 4)[0] >> 8) / 16777216.0
            jx = (s + randoms[0]) / mi.Float(per)
            jy = s * 0.618034 + shift + randoms[1] / mi.Float(per)
            jy -= dr.floor(jy)
        dx = (mi.Float(x) + jx - one(cam.k[0, 2])) / one(cam.k[0, 0])
        dy = (mi.Float(y) + jy - one(cam.k[1, 2])) / one(cam.k[1, 1])
        r = [[one(v) for v in row] for row in cam.rotation]
        inv = dr.rsqrt(dx * dx + dy * dy + 1)
        d = mi.Vector3f(*[(r[k][0] * dx + r[k][1] * dy + r[k][2]) * inv for k in range(3)])
        o = mi.Point3f(*[one(v) for v in cam.position])
        return mi.Ray3f(o + 0 * d, d), inv, randoms

    # ---- whole passes ------------------------------------------------------------------------------------

    def depth(self, cam: Camera) -> np.ndarray:
        """Depth (H, W) float32 along the optical axis, metres, +inf where nothing is hit."""
        import drjit as dr

        mi = self.mi
        ray, inv, _ = self._camera_rays(cam, 1, 0, True)
        pi = self.scene.ray_intersect_preliminary(ray, coherent=True)
        z = dr.select(pi.is_valid(), pi.t * inv, dr.inf)
        return np.array(mi.Float(z)).reshape(cam.height, cam.width)

    def ranges(self, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        """First-hit distances (n,) float32 in metres of rays (n, 3) with unit directions, +inf beyond reach."""
        import drjit as dr

        mi = self.mi
        o = mi.Point3f(*(upload(mi.Float, x) for x in np.broadcast_to(origins, directions.shape).T))
        d = mi.Vector3f(*(upload(mi.Float, x) for x in directions.T))
        pi = self.scene.ray_intersect_preliminary(mi.Ray3f(o, d), coherent=False)
        t = np.array(mi.Float(dr.select(pi.is_valid(), pi.t, dr.inf)))
        return np.where(t <= reach, t, np.inf).astype(np.float32)

    def _sharp(self, cam: Camera, spp: int, seed: int) -> np.ndarray:
        """Per pixel means (H, W, 13): radiance of key light, sharp reflections and sky (3), albedo (3), normal (3),
        inverse depth (1), radiance of blurred reflections (3)."""
        import drjit as dr

        mi = self.mi
        par = self._params()
        ray, inv, rnd = self._camera_rays(cam, spp, seed, False)
        footprint = dr.opaque(mi.Float, 1 / cam.k[0, 0])
        hit = self._hit(ray, mi.Bool(True), footprint, True, rnd[2])
        on = hit["valid"]
        sun, e = self._key(hit, par, rnd[3], rnd[4], on)
        cos = dr.maximum(dr.dot(hit["n"], sun), 0)
        out = hit["albedo"] * e * (cos / dr.pi) + hit["emission"]
        # highlight of the key light (GGX with Schlick's Fresnel term)
        v = -ray.d
        h = dr.normalize(sun + v)
        a2 = dr.square(dr.maximum(hit["rough"], 0.06))
        nh = dr.maximum(dr.dot(hit["n"], h), 0)
        ggx = a2 / (dr.pi * dr.square(nh * nh * (a2 - 1) + 1))
        fres = hit["spec"] + (1 - hit["spec"]) * dr.power(1 - dr.maximum(dr.dot(h, v), 0), 5)
        has_spec = on & (hit["spec"] > 0.001)
        out += dr.select(
            has_spec, e * dr.minimum(ggx * fres * 0.25 / dr.maximum(dr.dot(hit["n"], v), 0.1), 20) * cos, 0
        )
        # mirror image of the surroundings, blurred by the roughness
        fuzz = mi.Vector3f(mi.warp.square_to_uniform_sphere(mi.Point2f(rnd[5], rnd[6]))) * hit["rough"] * 0.8
        rd = dr.normalize(mi.reflect(v, hit["n"]) + fuzz)
        fv = hit["spec"] + (1 - hit["spec"]) * dr.power(1 - dr.maximum(dr.dot(hit["n"], v), 0), 5)
        fv *= dr.clip(1.15 - hit["rough"], 0, 1)
        mirror = has_spec & (dr.dot(rd, hit["g"]) > 0)
        second = self._hit(mi.Ray3f(hit["p"], rd), mirror, footprint, False, rnd[7])
        l2, e2 = self._key(second, par, rnd[8], rnd[9], second["valid"])
        seen = second["albedo"] * (
            e2 * dr.maximum(dr.dot(second["n"], l2), 0) / dr.pi + self._ambient(par, second["n"])
        )
        seen = dr.select(second["valid"], seen + dr.minimum(second["emission"], 8), self._sky(rd))
        seen = dr.select(mirror, dr.minimum(seen, 12) * fv, 0)
        blurred = hit["rough"] > 0.1  # blurred reflections are noisy and smooth: they go with the soft light
        out += dr.select(blurred, 0, seen)
        out = dr.select(on, out, self._sky(ray.d))
        depth = dr.select(on, 1 / (hit["t"] * inv), 0)
        albedo = dr.select(on, hit["albedo"] * (1 - dr.select(has_spec, fv, 0)), 0)
        normal = dr.select(on, hit["g"], 0)
        channels = [*out, *albedo, *normal, depth, *dr.select(blurred, seen, 0)]
        return self._pixels(channels, cam, spp)

    def _ambient(self, par: Any, n: Any) -> Any:
        """Radiance assumed to fall on surfaces where paths end: brighter from above."""
        mi = self.mi
        return mi.Vector3f(par[6], par[7], par[8]) * (0.75 + 0.25 * n.z)

    def _soft(self, cam: Camera, spp: int, seed: int) -> np.ndarray:
        """Irradiance / pi at first hits from area lights, sky and one bounce: smooth, noisy, (H, W, 3)."""
        import drjit as dr

        mi = self.mi
        par = self._params()
        ray, _, rnd = self._camera_rays(cam, spp, seed + 0x9E3779B9, False)
        footprint = dr.opaque(mi.Float, 1 / cam.k[0, 0])
        first = self._hit(ray, mi.Bool(True), footprint, True, rnd[2])
        on = first["valid"]
        light = self._area(first, par, rnd[3], rnd[4], rnd[5], rnd[10], on)
        local = mi.warp.square_to_cosine_hemisphere(mi.Point2f(rnd[6], rnd[7]))
        d = mi.Frame3f(first["n"]).to_world(local)
        above = on & (dr.dot(d, first["g"]) > 0)
        second = self._hit(mi.Ray3f(first["p"], d), above, footprint, False, rnd[8])
        there = second["valid"]
        l2, e2 = self._key(second, par, rnd[8], rnd[9], there)
        e2 = e2 * (dr.maximum(dr.dot(second["n"], l2), 0) / dr.pi)
        e2 += self._area(second, par, rnd[9], rnd[0], rnd[1], rnd[11], there) + self._ambient(par, second["n"])
        bounced = dr.select(
            there, second["albedo"] * e2, dr.select(par[11] + first["outside"] > 0.5, self._sky(d), mi.Vector3f(0))
        )
        light += dr.select(above, dr.minimum(bounced, 40), 0)
        return self._pixels([*dr.select(on, light, 0)], cam, spp)

    def _pixels(self, channels: Any, cam: Camera, spp: int) -> np.ndarray:
        import drjit as dr

        mi = self.mi
        # evaluated before the sums: fused into them, the whole kernel would run again for every channel
        channels = [mi.Float(c) for c in channels]
        dr.eval(channels)
        sums = [dr.block_reduce(dr.ReduceOp.Add, c, spp) for c in channels]
        dr.eval(sums)
        return np.stack([np.array(s) for s in sums], -1).reshape(cam.height, cam.width, -1) / spp

    def image(self, cam: Camera, spp: int, seed: int, soft_spp: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Linear radiance (H, W, 3) and depth (H, W) of the camera."""
        if self.light.carried_at is not None:
            self.params_np[0:3] = cam.position + cam.rotation @ self.light.carried_at
        depth = self.depth(cam)
        sharp = self._sharp(cam, spp, seed)
        soft = self._soft(cam, soft_spp or max(2, spp // 2), seed)
        both = smooth_light(np.concatenate([soft, sharp[..., 10:13]], -1), sharp[..., 9], sharp[..., 6:9])
        return sharp[..., :3] + sharp[..., 3:6] * both[..., :3] + both[..., 3:], depth


def smooth_light(light: np.ndarray, inverse_depth: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Smooths light (H, W, C) over neighbours of like depth and normal (à-trous steps of 3×3, 1, 2, 4, 8 px)."""
    h, w = inverse_depth.shape
    logd = np.log(np.maximum(inverse_depth, 1e-4)).astype(np.float32)
    x = np.log1p(light * 8).astype(np.float32)  # in log light one bright sample cannot smear over its surroundings
    n = np.ascontiguousarray(normal, np.float32)
    # how fast depth changes here: on a slanted floor depth differs between neighbours without an edge
    gx, gy = (np.abs(cv2.Sobel(logd, -1, *d)) / 8 for d in ((1, 0), (0, 1)))
    lonely = np.zeros((h, w), bool)
    for step in (1, 2, 4, 8):
        total, weight = x.copy(), np.ones((h, w), np.float32)
        wide = [np.pad(a, [(step, step), (step, step)] + [(0, 0)] * (a.ndim - 2), "edge") for a in (x, logd, n)]
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if dx == 0 and dy == 0:
                    continue
                at = (slice(step * (1 + dy), step * (1 + dy) + h), slice(step * (1 + dx), step * (1 + dx) + w))
                allow = step * np.minimum(gx * abs(dx) + gy * abs(dy), 0.03) + 0.01
                near = np.exp(-np.abs(wide[1][at] - logd) / allow)
                like = np.clip(np.einsum("ijk,ijk->ij", n, wide[2][at]), 0, 1)
                like *= like
                like *= like
                share = near * like * like * np.float32(0.6 if dx and dy else 0.9)
                total += wide[0][at] * share[..., None]
                weight += share
        if step == 1:
            lonely = weight < 1.6
        x = total / weight[..., None]
    # edge pixels have no neighbours of their kind and kept their noise
    for c in range(x.shape[2]):
        plane = np.ascontiguousarray(x[..., c])
        x[..., c] = np.where(lonely, cv2.medianBlur(plane, 3), plane)
    return np.expm1(x) / 8
